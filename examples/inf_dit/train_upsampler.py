"""Trains the compact Inf-DiT of this folder to double the resolution of Fashion-MNIST images.

Flow matching on the detail that bicubic interpolation misses (`pixels.py`). All blocks of an image
stand at one noise level and are run one after another, as when images are upsampled.

    python examples/inf_dit/train_upsampler.py --out runs/inf_dit

Stop it at any time; the same command goes on from the last checkpoint.
"""

import sys
from pathlib import Path

import torch
from block_attention import RowMemory, cut, join
from inf_dit import SIDE, InfDiT
from pixels import DETAIL, bicubic, conditions, shrink
from safetensors.torch import save_file
from upsample import block_by_block

sys.path.append(str(Path(__file__).parents[1] / "fashion_dit"))
from data import IMAGE_SIZE, load_fashion_mnist
from training import arguments, flow_matching_loss, train

BLOCKS = IMAGE_SIZE // SIDE  # along a side of the image


def main() -> None:
    args = arguments(__doc__.splitlines()[0], steps=900, batch=32, peak_lr=1.2e-3).parse_args()
    images, _ = load_fashion_mnist("train", args.data)
    torch.manual_seed(args.seed)

    def loss_of(model: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
        picked = images[torch.randint(len(images), (args.batch,), generator=generator)]
        mirrored = torch.rand(args.batch, generator=generator) < 0.5
        picked = torch.where(mirrored[:, None, None, None], picked.flip(-1), picked)
        low = shrink(picked)
        upsampled, around = conditions(low)

        def velocity(mixed: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            x, grid = cut(mixed, SIDE), (BLOCKS, BLOCKS)
            blocks = block_by_block(model, x, timestep, upsampled, around, grid, RowMemory())
            return join(blocks, *grid)

        return flow_matching_loss(velocity, DETAIL * (picked - bicubic(low)), generator)

    def export(weights: dict[str, torch.Tensor]) -> None:
        half = {name: tensor.half().contiguous() for name, tensor in weights.items()}
        save_file(half, args.out / "inf_dit.safetensors")

    train(InfDiT().train(), loss_of, export, args)


if __name__ == "__main__":
    main()
