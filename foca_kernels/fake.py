"""Fake kernels: what `torch.compile`, `torch.export` and FakeTensor see of the operators.

They run the checks that need no memory (dtype, device, shape, contiguity, gradient) and return
tensors of the right shape. Values and overlaps are checked by the real kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import checks
from .rules import FAKE


def forecast_calibrate(
    f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, h: float, h_prev: float
) -> None:
    checks.forecast_calibrate(f_k, f_km1, d_anchor, h, h_prev, FAKE)


def forecast_calibrate_tensor(f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor) -> None:
    checks.forecast_calibrate_tensor(f_k, f_km1, d_anchor, steps, FAKE)


def forecast_calibrate_list(
    f_k: Sequence[Tensor], f_km1: Sequence[Tensor], d_anchor: Sequence[Tensor], steps: Tensor
) -> None:
    checks.forecast_calibrate_list(f_k, f_km1, d_anchor, steps, FAKE)


def forecast(history: Sequence[Tensor], weights: Tensor) -> Tensor:
    checks.forecast(history, weights, FAKE)
    return torch.empty_like(history[0])


def forecast_out(history: Sequence[Tensor], weights: Tensor, *, out: Tensor) -> None:
    checks.forecast(history, weights, FAKE, out)


def forecast_residual_(
    x: Tensor, history: Sequence[Tensor], weights: Tensor, gates: Sequence[Tensor]
) -> None:
    checks.forecast_residual_(x, history, weights, gates, FAKE)


def forecast_residual_packed_(x: Tensor, history: Tensor, weights: Tensor, gates: Tensor) -> None:
    checks.forecast_residual_packed_(x, history, weights, gates, FAKE)


def commit_(
    feature: Tensor, history: Sequence[Tensor], transition: Tensor, stats: Tensor | None
) -> None:
    checks.commit_(feature, history, transition, stats, FAKE)


def commit_list_(
    features: Sequence[Tensor],
    history: Sequence[Tensor],
    transition: Tensor,
    stats: Tensor | None,
) -> None:
    checks.commit_list_(features, history, transition, stats, FAKE)


forecast_calibrate_rotate: Callable[..., None] = forecast_calibrate_tensor
