"""The operators in plain PyTorch: the meaning of every op, and the fallback when nothing is built.

Arithmetic is float32 for bfloat16, float16 and float32 tensors and float64 for float64 ones, with
one rounding when the result is stored. The order of operations is the C++ kernels' order, and
nothing is contracted into fused multiply-adds, so on the CPU the two agree bit for bit.

Zero weights skip their term: a history slot that was never written may hold NaN. Weights on the CPU
are looked at as numbers; weights on a device stay there, and the skip is a ``torch.where``.

Functions are named after the overloads: ``op`` or ``op_overload``. Checks: ``checks.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks
from .rules import REFERENCE

Scalar = float | Tensor  # a number, or a zero-dimensional tensor on the features' device

# Elements summed at once. Below PyTorch's parallel grain (32768), so that the order of a sum, and
# with it the last bits, does not depend on the number of threads.
_CHUNK = 1 << 14


def _opmath(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _scalars(t: Tensor) -> list[Scalar]:
    """The values of a small tensor, flat: numbers if it is on the CPU, else tensors (no sync)."""
    return t.flatten().tolist() if t.device.type == "cpu" else list(t.flatten().unbind())


def _all_zero(weights: Sequence[Scalar]) -> bool:
    """True only if every weight is a host number equal to zero."""
    return not any(isinstance(w, Tensor) or w != 0 for w in weights)


def _add_term(acc: Tensor, weight: Scalar, value: Tensor) -> Tensor:
    """acc + weight * value; a zero weight leaves acc as it is, whatever value holds."""
    if isinstance(weight, Tensor):
        return torch.where(weight != 0, acc + value.to(acc.dtype) * weight, acc)
    return acc + value.to(acc.dtype) * weight if weight != 0 else acc


def _weighted_sum(
    values: Sequence[Tensor], weights: Sequence[Scalar], dtype: torch.dtype
) -> Tensor:
    acc = torch.zeros_like(values[0], dtype=dtype)
    for weight, value in zip(weights, values, strict=True):
        acc = _add_term(acc, weight, value)
    return acc


def _store(target: Tensor, value: Tensor) -> None:
    """Writes where tensors made in inference mode may be written, too."""
    with torch.inference_mode():
        target.copy_(value)


# ---- forecast_calibrate --------------------------------------------------------------------------


def _calibrate(f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor) -> Tensor:
    dtype = _opmath(f_k)
    h, h_prev = steps.to(dtype).unbind()
    half_h, inv_h_prev = 0.5 * h, 1.0 / h_prev
    now = f_k.to(dtype)
    slope = (now - f_km1.to(dtype)) * inv_h_prev
    return (now + half_h * (d_anchor.to(dtype) + slope)).to(f_k.dtype)


def forecast_calibrate(
    f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, h: float, h_prev: float
) -> None:
    checks.forecast_calibrate(f_k, f_km1, d_anchor, h, h_prev, REFERENCE)
    # Two numbers stay on the host: PyTorch passes zero-dimensional CPU tensors by value.
    steps = torch.tensor([h, h_prev], dtype=_opmath(f_k))
    _store(f_km1, _calibrate(f_k, f_km1, d_anchor, steps))


def forecast_calibrate_tensor(f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor) -> None:
    checks.forecast_calibrate_tensor(f_k, f_km1, d_anchor, steps, REFERENCE)
    _store(f_km1, _calibrate(f_k, f_km1, d_anchor, steps))


def forecast_calibrate_list(
    f_k: Sequence[Tensor], f_km1: Sequence[Tensor], d_anchor: Sequence[Tensor], steps: Tensor
) -> None:
    checks.forecast_calibrate_list(f_k, f_km1, d_anchor, steps, REFERENCE)
    for now, before, slope in zip(f_k, f_km1, d_anchor, strict=True):
        _store(before, _calibrate(now, before, slope, steps))


def forecast_calibrate_rotate(f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor) -> None:
    checks.forecast_calibrate_tensor(f_k, f_km1, d_anchor, steps, REFERENCE, rotate=True)
    result = _calibrate(f_k, f_km1, d_anchor, steps)
    _store(f_km1, f_k)
    _store(f_k, result)


# ---- forecast ------------------------------------------------------------------------------------


def forecast(history: Sequence[Tensor], weights: Tensor) -> Tensor:
    checks.forecast(history, weights, REFERENCE)
    first = history[0]
    return _weighted_sum(history, _scalars(weights), _opmath(first)).to(first.dtype)


def forecast_out(history: Sequence[Tensor], weights: Tensor, *, out: Tensor) -> None:
    checks.forecast(history, weights, REFERENCE, out)
    _store(out, _weighted_sum(history, _scalars(weights), _opmath(out)))


# ---- forecast_residual_ --------------------------------------------------------------------------


def _add_feature(
    acc: Tensor, values: Sequence[Tensor], weights: Sequence[Scalar], gate: Tensor | None
) -> Tensor:
    """acc + gate * sum_p w_p values_p; a feature whose weights are all zero is skipped."""
    if _all_zero(weights):
        return acc
    feature = _weighted_sum(values, weights, acc.dtype)
    total = acc + (feature if gate is None else gate.to(acc.dtype) * feature)
    if isinstance(weights[0], Tensor):
        used = torch.stack([w != 0 for w in weights if isinstance(w, Tensor)]).any()
        return torch.where(used, total, acc)
    return total


def _residual(
    x: Tensor,
    history: Sequence[Tensor],
    weights: Tensor,
    gates: Sequence[Tensor],
    n_features: int,
    k: int,
) -> None:
    rows = _scalars(weights) * (1 if weights.dim() == 2 else n_features)
    acc = x.to(_opmath(x))
    for i in range(n_features):
        part = slice(i * k, (i + 1) * k)
        acc = _add_feature(acc, history[part], rows[part], gates[i] if gates else None)
    _store(x, acc)


def forecast_residual_(
    x: Tensor, history: Sequence[Tensor], weights: Tensor, gates: Sequence[Tensor]
) -> None:
    n_features, k = checks.forecast_residual_(x, history, weights, gates, REFERENCE)
    _residual(x, history, weights, gates, n_features, k)


def forecast_residual_packed_(x: Tensor, history: Tensor, weights: Tensor, gates: Tensor) -> None:
    n_features, k = checks.forecast_residual_packed_(x, history, weights, gates, REFERENCE)
    rows = [gate.unsqueeze(1) for gate in gates] if gates.numel() else []
    _residual(x, list(history.flatten(0, 1)), weights, rows, n_features, k)


# ---- commit_ -------------------------------------------------------------------------------------


def _sum(t: Tensor) -> Tensor:
    if t.numel() <= _CHUNK:
        return t.sum()
    return _sum(torch.stack([part.sum() for part in t.split(_CHUNK)]))


def _sum_of_squares(row: Tensor) -> Tensor:
    """sum(row ** 2) in float64, the same from run to run."""
    return _sum(torch.stack([p.double().square().sum() for p in row.flatten().split(_CHUNK)]))


def _commit(
    feature: Tensor,
    history: Sequence[Tensor],
    transition: Sequence[Scalar],
    stats: Tensor | None,
    k: int,
    n_stats: int,
) -> None:
    dtype = torch.promote_types(_opmath(feature), _opmath(history[0]))
    old = [*history, feature]
    rows = [
        _weighted_sum(old, transition[i * (k + 1) : (i + 1) * (k + 1)], dtype)
        for i in range(k + n_stats)
    ]
    for slot, row in zip(history, rows[:k], strict=True):
        _store(slot, row)
    if stats is not None and n_stats:
        _store(stats, torch.stack([_sum_of_squares(row) for row in rows[k:]]))


def commit_(
    feature: Tensor, history: Sequence[Tensor], transition: Tensor, stats: Tensor | None = None
) -> None:
    k, n_stats = checks.commit_(feature, history, transition, stats, REFERENCE)
    _commit(feature, history, _scalars(transition), stats, k, n_stats)


def commit_list_(
    features: Sequence[Tensor],
    history: Sequence[Tensor],
    transition: Tensor,
    stats: Tensor | None = None,
) -> None:
    k, n_stats = checks.commit_list_(features, history, transition, stats, REFERENCE)
    scalars = _scalars(transition)
    for i, feature in enumerate(features):
        slots = history[i * k : (i + 1) * k]
        row = stats[i] if stats is not None and n_stats else None
        _commit(feature, slots, scalars, row, k, n_stats)
