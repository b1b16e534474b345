"""The same computations in PyTorch, as one would write them: what the kernels are held against.

``chain_*`` rounds to the tensors' dtype after every operation, as straightforward code does.
``float32_*`` computes in float32 and rounds once, as the kernels do; compiled, it is the rival.
Both return new tensors, as published caches do; ``*_into`` writes where the kernels write.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _rows(weights: Tensor, n_features: int) -> Tensor:
    return weights.expand(n_features, weights.shape[-1])


def chain_forecast(history: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """As published caches write it (e.g. diffusers' TaylorSeer): a new tensor for every product."""
    feature = history[0] * weights[0]
    for slot, weight in zip(history[1:], weights[1:], strict=True):
        feature = feature + slot * weight
    return feature


def chain_forecast_into(history: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    """The least that eager PyTorch can move: fused multiply-adds into one buffer."""
    torch.mul(history[0], weights[0], out=out)
    for slot, weight in zip(history[1:], weights[1:], strict=True):
        out.add_(slot, alpha=weight)


def float32_forecast(history: Sequence[Tensor], weights: Tensor) -> Tensor:
    return float32_sum(history, weights).to(history[0].dtype)


def float32_forecast_into(history: Sequence[Tensor], weights: Tensor, out: Tensor) -> None:
    out.copy_(float32_sum(history, weights))


def float32_sum(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    acc = tensors[0].float() * weights[0]
    for p in range(1, len(tensors)):
        acc = acc + tensors[p].float() * weights[p]
    return acc


def chain_calibrate(
    f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, h: float, h_prev: float
) -> Tensor:
    return f_k + 0.5 * h * (d_anchor + (f_k - f_km1) / h_prev)


def float32_calibrate(f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor) -> Tensor:
    now = f_k.float()
    slope = (now - f_km1.float()) / steps[1]
    return (now + 0.5 * steps[0] * (d_anchor.float() + slope)).to(f_k.dtype)


def float32_calibrate_into(f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor) -> None:
    f_km1.copy_(float32_calibrate(f_k, f_km1, d_anchor, steps))


def foreach_calibrate(
    f_k: list[Tensor], f_km1: list[Tensor], d_anchor: list[Tensor], h: float, h_prev: float
) -> None:
    slope = torch._foreach_sub(f_k, f_km1)
    torch._foreach_mul_(slope, 1 / h_prev)
    torch._foreach_add_(slope, d_anchor)
    torch._foreach_mul_(slope, 0.5 * h)
    torch._foreach_add_(slope, f_k)
    torch._foreach_copy_(f_km1, slope)


def chain_residual(
    x: Tensor, history: Sequence[Tensor], weights: Sequence[float], gates: Sequence[Tensor]
) -> Tensor:
    """As caches and blocks write it: a forecast, a gate and a new stream for every feature."""
    k = len(weights)
    for i, gate in enumerate(gates):
        x = x + gate * chain_forecast(history[i * k : (i + 1) * k], weights)
    return x


def chain_residual_into(
    x: Tensor, history: Sequence[Tensor], weights: Sequence[float], gates: Sequence[Tensor]
) -> None:
    """The least that eager PyTorch can move: one buffer for the forecasts, the stream in place."""
    k = len(weights)
    feature = torch.empty_like(x)
    for i, gate in enumerate(gates):
        chain_forecast_into(history[i * k : (i + 1) * k], weights, feature)
        x.addcmul_(gate, feature)


def float32_residual(
    x: Tensor, history: Sequence[Tensor], weights: Tensor, gates: Sequence[Tensor]
) -> Tensor:
    k = weights.shape[-1]
    rows = _rows(weights, len(gates))
    acc = x.float()
    for i, gate in enumerate(gates):
        acc = acc + gate.float() * float32_sum(history[i * k : (i + 1) * k], rows[i])
    return acc.to(x.dtype)


def float32_residual_into(
    x: Tensor, history: Sequence[Tensor], weights: Tensor, gates: Sequence[Tensor]
) -> None:
    x.copy_(float32_residual(x, history, weights, gates))


def chain_commit(
    feature: Tensor, history: Sequence[Tensor], transition: list[list[float]]
) -> list[Tensor]:
    """The new history, then the sums of squares of the rows that are only reduced, if there are."""
    old = [*history, feature]
    rows = []
    for weights in transition:
        row = old[0] * weights[0]
        for slot, weight in zip(old[1:], weights[1:], strict=True):
            row.add_(slot, alpha=weight)
        rows.append(row)
    k = len(history)
    if len(rows) == k:
        return rows
    norms = torch._foreach_norm([row.float() for row in rows[k:]])
    return [*rows[:k], torch.stack(norms).square()]


def float32_commit(feature: Tensor, history: Sequence[Tensor], transition: Tensor) -> list[Tensor]:
    k = len(history)
    rows = [float32_sum([*history, feature], weights) for weights in transition]
    new = [row.to(history[0].dtype) for row in rows[:k]]
    return new + ([torch.stack([row.square().sum() for row in rows[k:]])] if rows[k:] else [])


def float32_commit_into(
    feature: Tensor, history: Sequence[Tensor], transition: Tensor, stats: Tensor | None
) -> None:
    new = float32_commit(feature, history, transition)
    for slot, row in zip([*history, *([] if stats is None else [stats])], new, strict=True):
        slot.copy_(row)
