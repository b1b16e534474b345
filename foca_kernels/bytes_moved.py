"""Bytes each operator must move to and from memory: what the benchmarks divide by time.

Every tensor that is read counts once and every tensor that is written counts once; weights and
other small tensors do not count. Terms with weight zero are not read. Counting looks at the values
of the weights, so for weights on a device it synchronises.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _used(tensors: Sequence[Tensor], weights: Sequence[float]) -> int:
    return _nbytes([t for t, w in zip(tensors, weights, strict=True) if w != 0])


def forecast_calibrate(f_k: Tensor, *, rotate: bool = False) -> int:
    """Reads f_k, f_km1 and d_anchor, writes f_km1; a rotation also writes f_k."""
    return (5 if rotate else 4) * _nbytes([f_k])


def forecast(history: Sequence[Tensor], weights: Tensor) -> int:
    """Reads the history and writes one tensor like it."""
    return _used(history, weights.tolist()) + _nbytes(history[:1])


def forecast_residual_(
    x: Tensor, history: Sequence[Tensor], weights: Tensor, gates: Sequence[Tensor]
) -> int:
    """Reads the history, the gates and x, writes x."""
    n_features = len(history) // weights.shape[-1]
    rows = weights.tolist() if weights.dim() == 2 else [weights.tolist()] * n_features
    read = _used(history, [w for row in rows for w in row])
    return read + _used(gates, [float(any(row)) for row in rows[: len(gates)]]) + 2 * _nbytes([x])


def forecast_residual_packed_(x: Tensor, history: Tensor, weights: Tensor, gates: Tensor) -> int:
    """As forecast_residual_, with the tensors in one arena."""
    rows = list(gates) if gates.numel() else []
    return forecast_residual_(x, list(history.flatten(0, 1)), weights, rows)


def commit_(feature: Tensor, history: Sequence[Tensor], transition: Tensor) -> int:
    """Reads the columns (history and feature) that some row uses, writes the history."""
    columns = transition.ne(0).any(dim=0).tolist()
    return _used([*history, feature], columns) + _nbytes(history)
