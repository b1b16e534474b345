"""Trains the small Diffusion Transformer that the demo and the quality figures run on.

Flow matching in pixel space: x_s = (1 - s) image + s noise, and the model predicts the velocity
noise - image from (x_s, 1000 s, class). One class label in ten is replaced by the null class, so
that the model serves classifier-free guidance.

    python examples/fashion_dit/train.py --out runs/fashion_dit

Stop it at any time; the same command goes on from the last checkpoint.
"""

import torch
from data import CLASSES, IMAGE_SIZE, NULL_CLASS, load_fashion_mnist
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from training import arguments, drop_labels, flow_matching_loss, train


def build_model(blocks: int = 7, heads: int = 3, head_dim: int = 64) -> DiTTransformer2DModel:
    """A DiT with adaLN-zero initialisation: at the start every block is the identity."""
    model = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=1,
        out_channels=1,
        num_layers=blocks,
        sample_size=IMAGE_SIZE,
        patch_size=4,
        num_embeds_ada_norm=len(CLASSES),
        norm_num_groups=1,
    )
    zero = [block.norm1.linear for block in model.transformer_blocks]
    for layer in [*zero, model.proj_out_1, model.proj_out_2]:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for block in model.transformer_blocks:
        # In train mode every diffusers block drops labels by itself, each another subset: the null
        # class would never be seen by all blocks at once. Labels are dropped once, in the loop.
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return model


def main() -> None:
    args = arguments(__doc__.splitlines()[0], steps=4000, batch=128, peak_lr=1e-3).parse_args()
    images, labels = load_fashion_mnist("train", args.data)
    torch.manual_seed(args.seed)

    def loss_of(model: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        picked = torch.randint(len(images), (args.batch,), generator=generator)
        dropped = drop_labels(labels[picked], NULL_CLASS, generator)
        return flow_matching_loss(
            lambda mixed, timestep: model(mixed, timestep=timestep, class_labels=dropped).sample,
            images[picked],
            generator,
        )

    def export(weights: dict[str, torch.Tensor]) -> None:
        shipped = build_model()
        shipped.load_state_dict(weights)
        shipped.half().save_pretrained(args.out / "transformer", safe_serialization=True)
        FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(args.out / "scheduler")

    train(build_model().train(), loss_of, export, args)


if __name__ == "__main__":
    main()
