"""A scheme run on stored features in float64: what the kernels and the cache must reproduce."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from foca_dit.schemes.base import Scheme, check_monotone, fault, require_int

if TYPE_CHECKING:
    import torch


def run_reference(
    scheme: Scheme,
    features: torch.Tensor,
    full_steps: Sequence[int],
    tau: Sequence[float] | None = None,
) -> torch.Tensor:
    """The values a cache with this scheme would use, step by step.

    Args:
        scheme: The scheme.
        features: [S, ...], any real dtype: the features computed at every step. Only those at
            full steps are read.
        full_steps: The steps at which the feature is computed, strictly increasing, from step 0.
        tau: S times, strictly monotone; None: the step index.

    Returns:
        float64 [S, ...] on the features' device: the feature at full steps, the forecast elsewhere.

    Raises:
        TypeError, ValueError: An argument is not as described; the message names it.
    """
    import torch  # here, so that planning needs no torch

    num_steps = features.shape[0]
    times = [float(i) for i in range(num_steps)] if tau is None else [float(t) for t in tau]
    if len(times) != num_steps:
        raise ValueError(fault("run_reference", "tau", f"{num_steps} times", len(times)))
    check_monotone("run_reference", times)
    full = [
        require_int("run_reference", f"full_steps[{i}]", s, 0, num_steps - 1)
        for i, s in enumerate(full_steps)
    ]
    if full[:1] != [0] or any(b <= a for a, b in pairwise(full)):
        expected = "strictly increasing steps that start with 0"
        raise ValueError(fault("run_reference", "full_steps", expected, full))

    anchors: list[int] = []
    history: list[torch.Tensor] = [torch.zeros_like(features[0], dtype=torch.float64)]
    history *= scheme.history_size
    used = torch.empty(features.shape, dtype=torch.float64, device=features.device)
    for step in range(num_steps):
        if step in full:
            anchors.append(step)
            used[step] = features[step].to(torch.float64)
            table = scheme.transition(times, anchors)
            history = [_weighted_sum(row.tolist(), [*history, used[step]]) for row in table]
        else:
            used[step] = _weighted_sum(scheme.weights(times, anchors, step).tolist(), history)
    return used


def _weighted_sum(weights: Sequence[float], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """In slot order, skipping zero weights, as the kernels do it."""
    total = tensors[0].new_zeros(tensors[0].shape)
    for weight, tensor in zip(weights, tensors, strict=True):
        if weight != 0.0:
            total = total + weight * tensor
    return total
