"""How close two sets of images are."""

from __future__ import annotations

import math

import torch


def psnr(images: torch.Tensor, reference: torch.Tensor, data_range: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB, over all images together.

    Args:
        images, reference: tensors of one shape.
        data_range: distance between the smallest and the largest possible value (2 for [-1, 1]).

    Returns:
        `10 log10(data_range^2 / mean squared error)`; infinite for equal images.
    """
    if images.shape != reference.shape:
        raise ValueError(
            f"psnr: argument 'images': expected shape {tuple(reference.shape)} like reference, "
            f"got {tuple(images.shape)}"
        )
    error = (images.double() - reference.double()).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(data_range**2 / error)
