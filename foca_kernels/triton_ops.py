"""Triton implementations of the operators: checks, launch geometry, launches.

Functions are named after the overloads: ``op`` or ``op_overload``. They serve CUDA tensors, and CPU
tensors under TRITON_INTERPRET=1. Nothing synchronises with the device. The first call of each kind
compiles; do it before capturing a CUDA graph. Weights on the host are frozen into a captured graph;
weights on the device are read anew at every replay.

Lists: forecast_calibrate and commit_ launch once per feature; forecast_residual_ unrolls a few
features into one launch and carries the sum between launches in float32, so that x is rounded once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from . import checks
from . import triton_kernels as kernels
from .rules import KERNEL

# Elements per program. 4 warps of 32 lanes hold 8 each: one 16-byte load of 16-bit values a lane,
# two of float32. Never fewer than one element a lane: commit_ relies on a lane owning its elements.
BLOCK_SIZE = 1024
NUM_WARPS = 4
OPTIONS = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}

# Tensors unrolled into one launch of the list form of forecast_residual_. The float32 sum carried
# between launches costs four bf16 tensors' traffic per launch, an eighth at this size.
MAX_UNROLLED_TERMS = 32

# Numbers per launch of write_values_kernel: kernel arguments, 4 bytes each.
MAX_VALUES = 64


def _on(t: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensor's device current; the launch goes to that device's current stream."""
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def _grid(n_elements: int) -> tuple[int]:
    return (triton.cdiv(n_elements, BLOCK_SIZE),)


def _by_value(small: Tensor, device: torch.device) -> tuple[Any, bool]:
    """A small tensor as kernel argument: (numbers, True) from the host, else (itself, False)."""
    if small.device.type == "cpu" and device.type != "cpu":
        return tuple(small.flatten().tolist()), True
    return small, False


def _on_device(small: Tensor, device: torch.device) -> Tensor:
    """A small host tensor on the device, through kernel arguments: no pageable copy, no sync."""
    values, by_value = _by_value(small, device)
    if not by_value:
        return small
    out = torch.empty(small.shape, dtype=torch.float32, device=device)
    flat = out.flatten()
    for start in range(0, len(values), MAX_VALUES):
        part = values[start : start + MAX_VALUES]
        kernels.write_values_kernel[(1,)](flat[start:], part, N=len(part), num_warps=1)
    return out


# ---- forecast_calibrate --------------------------------------------------------------------------


def _launch_calibrate(
    f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor, rotate: bool
) -> None:
    n = f_k.numel()
    if n == 0:
        return
    source, by_value = _by_value(steps, f_k.device)
    with _on(f_k):
        kernels.forecast_calibrate_kernel[_grid(n)](
            f_k, f_km1, d_anchor, source, n,
            BY_VALUE=by_value, ROTATE=rotate, BLOCK_SIZE=BLOCK_SIZE, **OPTIONS,
        )  # fmt: skip


def forecast_calibrate(
    f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, h: float, h_prev: float
) -> None:
    checks.forecast_calibrate(f_k, f_km1, d_anchor, h, h_prev, KERNEL)
    steps = torch.tensor([h, h_prev], dtype=torch.float32)
    _launch_calibrate(f_k, f_km1, d_anchor, steps, rotate=False)


def forecast_calibrate_tensor(f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor) -> None:
    checks.forecast_calibrate_tensor(f_k, f_km1, d_anchor, steps, KERNEL)
    _launch_calibrate(f_k, f_km1, d_anchor, steps, rotate=False)


def forecast_calibrate_list(
    f_k: Sequence[Tensor], f_km1: Sequence[Tensor], d_anchor: Sequence[Tensor], steps: Tensor
) -> None:
    checks.forecast_calibrate_list(f_k, f_km1, d_anchor, steps, KERNEL)
    for now, before, slope in zip(f_k, f_km1, d_anchor, strict=True):
        _launch_calibrate(now, before, slope, steps, rotate=False)


def forecast_calibrate_rotate(f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor) -> None:
    checks.forecast_calibrate_tensor(f_k, f_km1, d_anchor, steps, KERNEL, rotate=True)
    _launch_calibrate(f_k, f_km1, d_anchor, steps, rotate=True)


# ---- forecast ------------------------------------------------------------------------------------


def _launch_forecast(history: Sequence[Tensor], weights: Tensor, out: Tensor) -> None:
    n = out.numel()
    if n == 0:
        return
    source, by_value = _by_value(weights, out.device)
    with _on(out):
        kernels.forecast_kernel[_grid(n)](
            tuple(history), source, out, n,
            K=len(history), BY_VALUE=by_value, BLOCK_SIZE=BLOCK_SIZE, **OPTIONS,
        )  # fmt: skip


def forecast(history: Sequence[Tensor], weights: Tensor) -> Tensor:
    checks.forecast(history, weights, KERNEL)
    out = torch.empty_like(history[0])
    _launch_forecast(history, weights, out)
    return out


def forecast_out(history: Sequence[Tensor], weights: Tensor, *, out: Tensor) -> None:
    checks.forecast(history, weights, KERNEL, out)
    _launch_forecast(history, weights, out)


# ---- forecast_residual_ --------------------------------------------------------------------------


def _gate_period(x: Tensor, gate_rows: int) -> int:
    """Elements of x that share one of a gate's rows of D."""
    return x.numel() // gate_rows


def forecast_residual_(
    x: Tensor, history: Sequence[Tensor], weights: Tensor, gates: Sequence[Tensor]
) -> None:
    n_features, k = checks.forecast_residual_(x, history, weights, gates, KERNEL)
    n = x.numel()
    if n == 0:
        return
    period = _gate_period(x, gates[0].numel() // x.shape[-1]) if gates else n
    columns = x.shape[-1] if gates else n
    per_launch = max(1, MAX_UNROLLED_TERMS // k)
    per_feature = weights.dim() == 2
    with _on(x):
        source = x
        for start in range(0, n_features, per_launch):
            count = min(per_launch, n_features - start)
            last = start + count == n_features
            target = x if last else torch.empty_like(x, dtype=torch.float32)
            rows = weights[start : start + count] if per_feature else weights
            values, by_value = _by_value(rows, x.device)
            kernels.forecast_residual_kernel[_grid(n)](
                source, target, tuple(history[start * k : (start + count) * k]), values,
                tuple(gates[start : start + count]) if gates else None, period, columns, n,
                L=count, K=k, BY_VALUE=by_value, PER_FEATURE=per_feature, GATED=bool(gates),
                BLOCK_SIZE=BLOCK_SIZE, **OPTIONS,
            )  # fmt: skip
            source = target


def forecast_residual_packed_(x: Tensor, history: Tensor, weights: Tensor, gates: Tensor) -> None:
    n_features, k = checks.forecast_residual_packed_(x, history, weights, gates, KERNEL)
    n = x.numel()
    if n == 0:
        return
    gated = gates.numel() != 0
    rows, columns = (gates.shape[1], gates.shape[2]) if gated else (1, n)
    with _on(x):
        kernels.forecast_residual_packed_kernel[_grid(n)](
            x, history, _on_device(weights, x.device), gates if gated else None,
            k if weights.dim() == 2 else 0, rows * columns, _gate_period(x, rows), columns, n,
            n_features, K=k, GATED=gated, BLOCK_SIZE=BLOCK_SIZE, **OPTIONS,
        )  # fmt: skip


# ---- commit_ -------------------------------------------------------------------------------------


def _launch_commit(
    feature: Tensor,
    history: Sequence[Tensor],
    transition: Tensor,
    stats: Tensor | None,
    k: int,
    n_stats: int,
) -> None:
    n = feature.numel()
    if n == 0:
        if stats is not None:
            with torch.inference_mode():  # there tensors made in it may be written, too
                stats.zero_()
        return
    source, by_value = _by_value(transition, feature.device)
    grid = _grid(n)
    with _on(feature):
        partial = None
        if n_stats:
            partial = torch.empty((n_stats, grid[0]), dtype=torch.float32, device=feature.device)
        kernels.commit_kernel[grid](
            feature, tuple(history), source, partial, n,
            K=k, R=n_stats, BY_VALUE=by_value, BLOCK_SIZE=BLOCK_SIZE, **OPTIONS,
        )  # fmt: skip
        if n_stats:
            kernels.sum_partials_kernel[(n_stats,)](
                partial, stats, grid[0], BLOCK_SIZE=BLOCK_SIZE, **OPTIONS
            )


def commit_(
    feature: Tensor, history: Sequence[Tensor], transition: Tensor, stats: Tensor | None = None
) -> None:
    k, n_stats = checks.commit_(feature, history, transition, stats, KERNEL)
    _launch_commit(feature, history, transition, stats, k, n_stats)


def commit_list_(
    features: Sequence[Tensor],
    history: Sequence[Tensor],
    transition: Tensor,
    stats: Tensor | None = None,
) -> None:
    k, n_stats = checks.commit_list_(features, history, transition, stats, KERNEL)
    for i, feature in enumerate(features):
        row = stats[i] if stats is not None and n_stats else None
        _launch_commit(feature, history[i * k : (i + 1) * k], transition, row, k, n_stats)
