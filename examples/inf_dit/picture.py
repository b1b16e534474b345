"""Draws upsampled.png: low resolution, bicubic, the model with and without caches, and the truth.

python examples/inf_dit/picture.py [--data FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from compare import DEFAULT_FOLDER, STEPS, cached, load_fashion_mnist
from PIL import Image, ImageDraw, ImageFont
from pixels import bicubic, shrink
from upsample import load, upsample

from foca_dit import FoCaCacheConfig, schemes

GARMENTS, SCALE, MARGIN, LABEL = 12, 2, 12, 230


def tile(image: torch.Tensor, side: int) -> Image.Image:
    """Dark on light, its pixels as squares."""
    pixels = ((1 - image[0].clamp(-1, 1)) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((side, side), Image.Resampling.NEAREST)


def draw(lines: dict[str, torch.Tensor]) -> Image.Image:
    """One line of garments per name; images [B, 1, H, W] in [-1, 1]."""
    side = SCALE * max(images.shape[-1] for images in lines.values())
    font, step = ImageFont.load_default(13), side + 6
    canvas = Image.new(
        "L", (2 * MARGIN + LABEL + GARMENTS * step, 2 * MARGIN + step * len(lines)), 255
    )
    pen = ImageDraw.Draw(canvas)
    for row, (name, images) in enumerate(lines.items()):
        top = MARGIN + row * step
        pen.text((MARGIN, top + side // 2 - 8), name, fill=0, font=font)
        for column in range(GARMENTS):
            canvas.paste(tile(images[column], side), (MARGIN + LABEL + column * step, top))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("upsampled.png"))
    args = parser.parse_args()

    truth = load_fashion_mnist("t10k", args.data)[0][:GARMENTS]
    low, model = shrink(truth), load()
    lines = {"low resolution, 14 x 14": low, "bicubic": bicubic(low)}
    lines[f"all {STEPS} steps computed"] = upsample(model, low, STEPS)
    for interval, name, scheme in (
        (5, "FoCa, c = 1/2", schemes.FoCa(feedback=0.5)),
        (5, "reuse", schemes.Reuse()),
    ):
        config = FoCaCacheConfig(
            cache_interval=interval, scheme=scheme, granularity="module", time="step"
        )
        stats: dict[str, float] = {}
        images = cached(model, low, config, True, stats)
        lines[f"{name}: {stats['full_steps']:g} of {STEPS} computed"] = images
    lines["truth, 28 x 28"] = truth
    draw(lines).save(args.out, optimize=True)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
