"""Typed wrappers of ``torch.ops.foca.*``: the documented way to call the operators from Python.

What holds for all of them:

* Feature tensors are bfloat16, float16 or float32 (float64 where the PyTorch reference serves),
  contiguous, of any shape, empty ones included. Arithmetic is float32, rounded once when stored.
* Small tensors (``weights``, ``steps``, ``transition``) are float32, on the CPU or on the features'
  device. On the CPU their values are checked and passed by value. On the device they are read by
  the kernel: nothing synchronises, nothing is checked, and a captured CUDA graph or a compiled
  graph sees new values without being captured or compiled again.
* Inference only: an argument that requires a gradient, while gradients are enabled, is an error.
* A written tensor may not share memory with any other argument.
* Every refusal is a ``RuntimeError`` that names operator, argument, expected and got, raised before
  anything is written.

Equations are numbered as in the FoCa paper; docs/method.md derives them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import registry  # noqa: F401  (defines torch.ops.foca)

_ops = torch.ops.foca


def forecast_calibrate(
    f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, h: float, h_prev: float
) -> None:
    """One step of FoCa with the step sizes as numbers; writes F_{k+1} over ``f_km1``.

    F_{k+1} = F_k + h/2 (D_anchor + (F_k - F_{k-1}) / h_prev): the BDF2 predictor (eq. 7) and the
    Heun corrector (eq. 8), fused. In compiled code use :func:`forecast_calibrate_tensor`: a number
    that changes from step to step recompiles the graph.

    Args:
        f_k: Feature at step k, any shape.
        f_km1: Feature at step k - 1, like ``f_k``; overwritten with the feature at step k + 1.
        d_anchor: Slope of the feature at the anchor, like ``f_k``.
        h: Signed step from k to k + 1 in the time variable of ``d_anchor``.
        h_prev: Signed step from k - 1 to k; non-zero and of the sign of ``h``.

    Raises:
        RuntimeError: If an argument breaks the contract.
    """
    _ops.forecast_calibrate.default(f_k, f_km1, d_anchor, h, h_prev)


def forecast_calibrate_tensor(f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor) -> None:
    """:func:`forecast_calibrate` with the step sizes in a tensor.

    Args:
        f_k: Feature at step k, any shape.
        f_km1: Feature at step k - 1, like ``f_k``; overwritten with the feature at step k + 1.
        d_anchor: Slope of the feature at the anchor, like ``f_k``.
        steps: float32 [2], (h, h_prev), on the CPU or on the device of ``f_k``.

    Raises:
        RuntimeError: If an argument breaks the contract.
    """
    _ops.forecast_calibrate.tensor(f_k, f_km1, d_anchor, steps)


def forecast_calibrate_rotate(f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor) -> None:
    """:func:`forecast_calibrate_tensor` that keeps both values in place for the next step.

    ``f_km1`` receives the old F_k and ``f_k`` receives F_{k+1}, so that the same call, or one
    captured CUDA graph, can be repeated for step after step.

    Args:
        f_k: Feature at step k, any shape; overwritten with the feature at step k + 1.
        f_km1: Feature at step k - 1, like ``f_k``; overwritten with the feature at step k.
        d_anchor: Slope of the feature at the anchor, like ``f_k``.
        steps: float32 [2], (h, h_prev), on the CPU or on the device of ``f_k``.

    Raises:
        RuntimeError: If an argument breaks the contract.
    """
    _ops.forecast_calibrate.rotate(f_k, f_km1, d_anchor, steps)


def forecast_calibrate_list(
    f_k: Sequence[Tensor], f_km1: Sequence[Tensor], d_anchor: Sequence[Tensor], steps: Tensor
) -> None:
    """:func:`forecast_calibrate_tensor` for many features, in one launch where C++ serves.

    Args:
        f_k: Features at step k: at least one, of one dtype and device; shapes may differ.
        f_km1: As many features at step k - 1, each like its ``f_k``; overwritten.
        d_anchor: As many slopes at the anchor, each like its ``f_k``.
        steps: float32 [2], (h, h_prev), shared by all.

    Raises:
        RuntimeError: If an argument breaks the contract.
    """
    _ops.forecast_calibrate.list(f_k, f_km1, d_anchor, steps)


def forecast(history: Sequence[Tensor], weights: Tensor, out: Tensor | None = None) -> Tensor:
    """The weighted sum of one feature's history: sum_p w_p H_p, the output of any forecaster.

    Args:
        history: K tensors of one shape and dtype, 1 <= K <= 8. A tensor whose weight is zero is not
            read and may hold anything, NaN included.
        weights: float32 [K], on the CPU or on the history's device.
        out: Where to write, like ``history[0]``; by default a new tensor.

    Returns:
        ``out``, or a new tensor like ``history[0]``.

    Raises:
        RuntimeError: If an argument breaks the contract.
    """
    if out is None:
        result: Tensor = _ops.forecast.default(history, weights)
        return result
    _ops.forecast.out(history, weights, out=out)
    return out


def forecast_residual_(
    x: Tensor, history: Sequence[Tensor], weights: Tensor, gates: Sequence[Tensor] = ()
) -> Tensor:
    """The collapsed skip: x += sum_l gate_l * sum_p w[l,p] H[l,p] over all L features at once.

    The sum is kept in float32 and x is rounded once. A feature whose weights are all zero is
    skipped, its gate included. (docs/method.md, "The collapsed skip step".)

    Args:
        x: The residual stream, any shape ([B, S, D] for the gates other than [D]); overwritten.
        history: L * K tensors of x's shape, feature by feature, 1 <= L <= 256, 1 <= K <= 8, of one
            dtype, which may differ from x's.
        weights: float32 [L, K], or [K] for all features alike; on the CPU or on x's device.
        gates: L tensors of one shape, [D], [1, 1, D], [B, 1, D] or [B, S, D], in x's dtype or
            float32; or none: ungated.

    Returns:
        ``x``.

    Raises:
        RuntimeError: If an argument breaks the contract.
    """
    _ops.forecast_residual_.default(x, history, weights, gates)
    return x


def forecast_residual_packed_(
    x: Tensor, history: Tensor, weights: Tensor, gates: Tensor | None = None
) -> Tensor:
    """:func:`forecast_residual_` on one arena that holds the history of all features.

    Args:
        x: The residual stream, any shape ([B, S, D] when gated); overwritten.
        history: [L, K, *x.shape], 1 <= L <= 256, 1 <= K <= 8; its dtype may differ from x's.
        weights: float32 [L, K] or [K]; on the CPU or on x's device.
        gates: [L, 1, D] or [L, B, D] in x's dtype or float32; None or an empty tensor: ungated.

    Returns:
        ``x``.

    Raises:
        RuntimeError: If an argument breaks the contract.
    """
    if gates is None:
        gates = x.new_empty(0)
    _ops.forecast_residual_.packed(x, history, weights, gates)
    return x


def commit_(
    feature: Tensor, history: Sequence[Tensor], transition: Tensor, stats: Tensor | None = None
) -> None:
    """Folds a computed feature into its history: H_p <- sum_q M[p,q] v_q with v = (old H, feature).

    All rows are computed from the old values in one pass. Rows beyond the history's K are not
    stored: their squared L2 norms (of the float32 values) go to ``stats``, the same from run to
    run.

    Args:
        feature: The feature just computed, any shape.
        history: K tensors of the feature's shape and one dtype, 1 <= K <= 8; overwritten. A column
            of the transition that is zero everywhere is not read.
        transition: float32 [K + R, K + 1], 0 <= R <= 8, on the CPU or on the feature's device.
        stats: float32 [R] on the feature's device, overwritten; None when R = 0. For an empty
            feature the norms are 0.

    Raises:
        RuntimeError: If an argument breaks the contract.
    """
    _ops.commit_.default(feature, history, transition, stats)


def commit_list_(
    features: Sequence[Tensor],
    history: Sequence[Tensor],
    transition: Tensor,
    stats: Tensor | None = None,
) -> None:
    """:func:`commit_` for many features with one transition.

    Args:
        features: L tensors of one dtype and device, 1 <= L <= 256; shapes may differ.
        history: L * K tensors, feature by feature, each of its feature's shape; overwritten.
        transition: float32 [K + R, K + 1], on the CPU or on the features' device.
        stats: float32 [L, R] on the features' device, overwritten; None when R = 0.

    Raises:
        RuntimeError: If an argument breaks the contract.
    """
    _ops.commit_.list(features, history, transition, stats)
