"""The demo's picture: one line of garments per method, the same seeds in every line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from foca_dit.cli.demo import Row

GARMENTS = 10
SCALE = 2
MARGIN = 16
LABEL_WIDTH = 250
LINE_GAP = 8
TITLE = "The same garments, computed step by step or forecast from a cache"


def draw(rows: list[Row], steps: int) -> Image.Image:
    """Draws the full run on top, then every method, with what it cost and how close it came.

    Args:
        rows: the measured settings, the full run first; images [B, 1, H, W] in [-1, 1].
        steps: denoising steps of the full run.
    """
    small, large = ImageFont.load_default(13), ImageFont.load_default(18)
    size = rows[0].images.shape[-1] * SCALE
    columns = min(GARMENTS, len(rows[0].images))
    line = size + LINE_GAP
    width = MARGIN * 2 + LABEL_WIDTH + columns * (size + 4)
    height = MARGIN * 2 + 58 + line * len(rows)
    canvas = Image.new("RGB", (max(width, 860), height), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, MARGIN), TITLE, fill="black", font=large)
    note = (
        f"Each line starts from the same noise. The top line computes all {steps} steps; "
        "dB says how close the others stay to it (higher is closer)."
    )
    pen.text((MARGIN, MARGIN + 26), note, fill="#555555", font=small)
    for index, row in enumerate(rows):
        top = MARGIN + 58 + index * line
        title, detail = _label(row, rows[0], steps)
        pen.text((MARGIN, top + size // 2 - 20), title, fill="black", font=small)
        pen.text((MARGIN, top + size // 2 - 2), detail, fill="#555555", font=small)
        for column in range(columns):
            left = MARGIN + LABEL_WIDTH + column * (size + 4)
            canvas.paste(_garment(row.images[column], size), (left, top))
    return canvas


def _label(row: Row, full: Row, steps: int) -> tuple[str, str]:
    if row is full:
        return "every step computed", f"{steps} of {steps} steps, speed 1x"
    speed = f"{row.full_steps} of {steps} steps, {row.speedup:.1f}x faster"
    return f"{row.scheme}, {row.granularity}: {row.psnr:.1f} dB", speed


def _garment(image: torch.Tensor, size: int) -> Image.Image:
    pixels = ((image[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    # Light on dark in the data; dark on light reads better on a page.
    return Image.fromarray(255 - pixels.numpy()).resize((size, size), Image.Resampling.LANCZOS)
