"""How close two sets of images are."""

from __future__ import annotations

import math
import statistics

import torch


def psnr(images: torch.Tensor, reference: torch.Tensor, data_range: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB, over all images together.

    Args:
        images, reference: tensors of one shape.
        data_range: distance between the smallest and the largest possible value (2 for [-1, 1]).

    Returns:
        `10 log10(data_range^2 / mean squared error)`; infinite for equal images, minus infinity
        where the error overflows, NaN where a value is none.
    """
    if images.shape != reference.shape:
        raise ValueError(
            f"psnr: argument 'images': expected shape {tuple(reference.shape)} like reference, "
            f"got {tuple(images.shape)}"
        )
    error = (images.double() - reference.double()).square().mean().item()
    if error == 0:
        return math.inf
    return -math.inf if error == math.inf else 10 * math.log10(data_range**2 / error)


def mean_psnr(images: torch.Tensor, reference: torch.Tensor, data_range: float = 2.0) -> float:
    """The mean of each image's own `psnr`: what papers print, and what scatters less.

    Args:
        images, reference: [B, ...].
        data_range: as of `psnr`.
    """
    pairs = zip(images, reference, strict=True)
    return statistics.fmean(psnr(image, other, data_range) for image, other in pairs)


def frame_psnr(
    clips: torch.Tensor, reference: torch.Tensor, data_range: float = 2.0
) -> list[float]:
    """`psnr` of each frame of clips [B, C, F, H, W], over all clips together."""
    frames = zip(_frames(clips), _frames(reference), strict=True)
    return [psnr(frame, other, data_range) for frame, other in frames]


def temporal_psnr(clips: torch.Tensor, reference: torch.Tensor, data_range: float = 2.0) -> float:
    """`psnr` of the changes from frame to frame of clips [B, C, F, H, W]: is the motion the same?

    Flicker shows here: an error that stays from frame to frame does not count, one that changes its
    sign counts twice.
    """
    return psnr(_frames(clips).diff(dim=0), _frames(reference).diff(dim=0), data_range)


def _frames(clips: torch.Tensor) -> torch.Tensor:
    """[F, B, C, H, W]."""
    if clips.dim() != 5:
        raise ValueError(
            f"argument 'clips': expected [B, C, F, H, W], got shape {tuple(clips.shape)}"
        )
    return clips.movedim(2, 0)
