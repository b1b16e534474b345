"""Trains the small video model: moving garments, flow matching, diffusers' Wan transformer.

What is a prompt's embedding in Wan is one fixed token per class here, drawn once and shipped beside
the weights. Noise levels are shifted towards noise (shift 3), as frames that are alike need it.

    python examples/fashion_dit/train_video.py --out runs/video_dit

Stop it at any time; the same command goes on from the last checkpoint.
"""

import json

import torch
from data import CLASSES, NULL_CLASS, load_fashion_mnist
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from moving import FRAME_SIZE, FRAMES, moving_clips
from safetensors.torch import save_file
from training import arguments, drop_labels, flow_matching_loss, train

from foca_dit.evaluation.trained import SAMPLING, TOKENS

TOKEN_SIZE = 32
SHIFT = 3.0


def build_model(blocks: int = 6, heads: int = 2, head_dim: int = 64) -> WanTransformer3DModel:
    """A Wan transformer on pixels whose blocks are the identity at the start."""
    width = heads * head_dim
    model = WanTransformer3DModel(
        patch_size=(2, 4, 4),
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=1,
        out_channels=1,
        text_dim=TOKEN_SIZE,
        freq_dim=256,
        ffn_dim=4 * width,
        num_layers=blocks,
        rope_max_seq_len=32,
    )
    zero = [model.condition_embedder.time_proj, model.proj_out]
    for block in model.blocks:
        zero.append(block.attn2.to_out[0])  # cross-attention has no gate
        torch.nn.init.zeros_(block.scale_shift_table)
    for layer in zero:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


def class_tokens(seed: int = 0) -> torch.Tensor:
    """[classes + 1, 1, TOKEN_SIZE], what stands in the place of prompts; the last: no class."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(CLASSES) + 1, 1, TOKEN_SIZE, generator=generator)


def main() -> None:
    doc = __doc__.splitlines()[0]
    args = arguments(doc, steps=1500, batch=32, peak_lr=2e-3, warmup=100).parse_args()
    images, labels = load_fashion_mnist("train", args.data)
    tokens = class_tokens(args.seed)
    torch.manual_seed(args.seed)

    def loss_of(model: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        picked = torch.randint(len(images), (args.batch,), generator=generator)
        prompts = tokens[drop_labels(labels[picked], NULL_CLASS, generator)]
        return flow_matching_loss(
            lambda mixed, timestep: model(mixed, timestep, prompts).sample,
            moving_clips(images[picked], generator),
            generator,
            SHIFT,
        )

    def export(weights: dict[str, torch.Tensor]) -> None:
        shipped = build_model()
        shipped.load_state_dict(weights)
        shipped.half().save_pretrained(args.out / "transformer", safe_serialization=True)
        save_file({"tokens": tokens}, args.out / TOKENS)
        shape = {"shape": [1, FRAMES, FRAME_SIZE, FRAME_SIZE]}
        (args.out / SAMPLING).write_text(json.dumps(shape) + "\n")
        FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(args.out / "scheduler")

    train(build_model().train(), loss_of, export, args)


if __name__ == "__main__":
    main()
