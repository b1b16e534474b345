"""From images to what the model is given of them, and back."""

from __future__ import annotations

import torch
from block_attention import cut
from inf_dit import AROUND, SCALE, SIDE
from torch.nn import functional as F

DETAIL = 4.0
"""The model's data is DETAIL * (image - upsampled): the detail that bicubic interpolation misses,
brought near unit size (its standard deviation is 0.22 on Fashion-MNIST)."""


def shrink(images: torch.Tensor) -> torch.Tensor:
    """Low-resolution images [B, 1, H / 2, W / 2] of 256 grey levels, by antialiased bicubic."""
    low = F.interpolate(images, scale_factor=1 / SCALE, mode="bicubic", antialias=True)
    return (low.clamp(-1, 1) * 127.5).round() / 127.5


def bicubic(low: torch.Tensor) -> torch.Tensor:
    """The upsampling that the model starts from, and has to beat."""
    return F.interpolate(low, scale_factor=SCALE, mode="bicubic").clamp(-1, 1)


def conditions(low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model is told of the low-resolution images [B, 1, h, w], for all blocks in order.

    Returns:
        `upsampled` [B P, 1, SIDE, SIDE] and `around` [B P, 1, AROUND, AROUND], black outside.
    """
    step = SIDE // SCALE
    around = F.pad(low, (step, step, step, step), value=-1.0)
    around = around.unfold(2, AROUND, step).unfold(3, AROUND, step)
    around = around.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()
    return cut(bicubic(low), SIDE), around
