"""An independent float64 account of what the operators compute, and the one tolerance of all tests.

The oracle starts from the equations, not from the kernels' simplified forms: forecast_calibrate is
BDF2 predictor, BDF2 slope and Heun corrector one after the other. Each result comes with its
magnitude, the sum of the absolute values of its terms, which is what rounding errors scale with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EPS32 = torch.finfo(torch.float32).eps

# Roundings of float32 that a result may carry, in units of eps32 * magnitude.
SUM_EPS = 8


class Expected(NamedTuple):
    value: Tensor  # float64
    magnitude: Tensor  # float64, not smaller than |value|


def calibrate(f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, h: float, h_prev: float) -> Expected:
    """Equations 7, 6 and 8 of the FoCa paper for variable steps, w = h / h_prev."""
    now, before, anchor = f_k.double(), f_km1.double(), d_anchor.double()
    w = h / h_prev
    slope = (now - before) / h_prev
    predicted = ((1 + w) ** 2 * now - w**2 * before + (1 + w) * h * slope) / (1 + 2 * w)
    next_slope = ((1 + 2 * w) / (1 + w) * predicted - (1 + w) * now + w**2 / (1 + w) * before) / h
    corrected = now + h / 2 * (anchor + next_slope)
    differences = (now.abs() + before.abs()) / abs(h_prev)
    return Expected(corrected, now.abs() + abs(h) / 2 * (anchor.abs() + differences))


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Expected:
    """sum_p w_p t_p; a term of weight zero does not exist."""
    zero = torch.zeros(tensors[0].shape, dtype=torch.float64, device=tensors[0].device)
    terms = [w * t.double() for t, w in zip(tensors, weights, strict=True) if w != 0]
    return Expected(sum(terms, zero), sum((t.abs() for t in terms), zero))


def residual(
    x: Tensor, history: Sequence[Tensor], weights: Tensor, gates: Sequence[Tensor]
) -> Expected:
    """x + sum_l gate_l * sum_p w[l,p] h[l,p]; gates broadcast against x."""
    k = weights.shape[-1]
    n_features = len(history) // k
    rows = weights.expand(n_features, k).tolist()
    value, magnitude = x.double(), x.double().abs()
    for i, row in enumerate(rows):
        if not any(row):
            continue
        feature = weighted_sum(history[i * k : (i + 1) * k], row)
        gate = gates[i].double() if gates else torch.ones((), dtype=torch.float64).to(x.device)
        value = value + gate * feature.value
        magnitude = magnitude + gate.abs() * feature.magnitude
    return Expected(value, magnitude)


def commit(feature: Tensor, history: Sequence[Tensor], transition: Tensor) -> list[Expected]:
    """Every row of the transition applied to (history, feature), all from the old values."""
    return [weighted_sum([*history, feature], row) for row in transition.tolist()]


def sum_of_squares(row: Expected) -> Expected:
    return Expected(row.value.square().sum(), row.magnitude.square().sum())


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between neighbouring numbers of ``dtype`` around ``value``, as float64."""
    info = torch.finfo(dtype)
    magnitude = value.double().abs().clamp(info.smallest_normal, info.max)
    return torch.exp2(torch.floor(torch.log2(magnitude))) * info.eps


def assert_close(actual: Tensor, expected: Expected) -> None:
    """Half an ulp of the output's dtype plus SUM_EPS eps32 * magnitude; NaN and inf exactly."""
    value, magnitude = expected
    assert actual.shape == value.shape
    got = actual.double()
    finite = value.isfinite()
    assert torch.equal(got.isnan(), value.isnan())
    assert torch.equal(got[~finite].nan_to_num(nan=0.0), value[~finite].nan_to_num(nan=0.0))
    eps = torch.finfo(torch.float64).eps if actual.dtype == torch.float64 else EPS32
    slack = SUM_EPS * eps * magnitude
    bound = 0.5 * ulp(value.abs() + slack, actual.dtype) + slack
    excess = ((got - value).abs() - bound)[finite]
    assert not bool((excess > 0).any()), f"off by {float(excess.max()):.3g} beyond the tolerance"
