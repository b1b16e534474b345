"""How good images are: SSIM to a reference; Frechet distance, score and accuracy to the data.

The last three look at a classifier's features and logits. With the shipped Fashion-MNIST classifier
they are "classifier-FID" and "classifier-IS": comparable with each other, not with figures on
Inception features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

Moments = tuple[int, torch.Tensor, torch.Tensor]
"""Number of images, mean [D] and unbiased covariance [D, D] of their features."""

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K = (0.01, 0.03)


def ssim(images: torch.Tensor, reference: torch.Tensor, data_range: float = 2.0) -> float:
    """Structural similarity, the mean over all windows, channels and images.

    Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004: a
    Gaussian window of 11 pixels with sigma 1.5 (whole windows only), K = (0.01, 0.03).

    Args:
        images, reference: [B, C, H, W], at least 11 pixels in height and width.
        data_range: distance between the smallest and the largest possible value (2 for [-1, 1]).

    Raises:
        ValueError: shapes that differ, or images smaller than the window.
    """
    if images.shape != reference.shape or images.dim() != 4:
        raise ValueError(
            f"ssim: argument 'images': expected [B, C, H, W] of shape {tuple(reference.shape)} "
            f"like reference, got {tuple(images.shape)}"
        )
    if min(images.shape[2:]) < SSIM_WINDOW:
        raise ValueError(
            f"ssim: argument 'images': expected at least {SSIM_WINDOW} pixels in height and width, "
            f"got {tuple(images.shape[2:])}"
        )
    x, y = images.double().flatten(0, 1)[:, None], reference.double().flatten(0, 1)[:, None]
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    line = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    line = (line / line.sum()).to(x.device)
    row, column = line.view(1, 1, 1, -1), line.view(1, 1, -1, 1)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(values, row), column)

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = ((k * data_range) ** 2 for k in SSIM_K)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())


def gaussian(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [D] and unbiased covariance [D, D] of features [n, D], in float64.

    Raises:
        ValueError: fewer than two rows.
    """
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(
            "gaussian: argument 'features': expected [n, D] with n at least 2, "
            f"got {tuple(features.shape)}"
        )
    features = features.double()
    return features.mean(0), features.T.cov()


def together(parts: Sequence[Moments]) -> Moments:
    """The moments of all images of disjoint parts, in float64."""
    total = sum(count for count, _, _ in parts)
    mean = sum((count * mean.double() for count, mean, _ in parts), torch.tensor(0.0)) / total
    spread = torch.zeros_like(parts[0][2], dtype=torch.float64)
    for count, part, cov in parts:
        away = part.double() - mean
        spread += (count - 1) * cov.double() + count * torch.outer(away, away)
    return total, mean, spread / (total - 1)


def frechet_distance(
    mean: torch.Tensor, cov: torch.Tensor, other_mean: torch.Tensor, other_cov: torch.Tensor
) -> float:
    """`|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`, the squared Frechet distance of two Gaussians.

    Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017. The trace of the root is that
    of the symmetric `C1^(1/2) C2 C1^(1/2)`, which has the same eigenvalues and needs no complex
    numbers. From n samples of D features with n <= D the covariance is singular and the distance
    too large: compare only figures from equally many images.
    """
    cov, other_cov = cov.double(), other_cov.double()
    root = _root(cov)
    inner = torch.linalg.eigvalsh(root @ other_cov @ root).clamp_min(0).sqrt().sum()
    shift = (mean.double() - other_mean.double()).square().sum()
    return max(float(shift + cov.trace() + other_cov.trace() - 2 * inner), 0.0)


def _root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: torch.Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def inception_score(logits: torch.Tensor) -> float:
    """`exp(mean KL(p(y|x) || p(y)))` of logits [n, classes]: between 1 and the number of classes.

    Salimans et al., Improved Techniques for Training GANs, 2016, over all images in one split.
    """
    log_p = logits.double().log_softmax(1)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))
    return math.exp(float((log_p.exp() * (log_p - log_mean)).sum(1).mean()))


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images that the classifier takes for their label."""
    return float((logits.argmax(1) == labels).double().mean())
