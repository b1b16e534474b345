"""The contract of the operators, as code: what every backend accepts and how it refuses.

One function per overload. Each runs before anything is written and raises ``RuntimeError`` with

    foca::{op}: argument '{arg}': expected {expected}, got {got}

The PyTorch reference, the Triton launchers and the fake kernels call these functions; the C++
libraries implement the same checks with the same text (``tests/kernels/test_bad_inputs.py`` holds
all backends to it).

Order, so that one fault gives one message: for each tensor dtype, device, shape, contiguity,
gradient; then the values of small host tensors; then the negative bit and overlaps of what is
written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .rules import (
    Mode,
    Named,
    check_finite,
    check_floating,
    check_follow,
    check_history,
    check_lead,
    check_own_memory,
    check_plain,
    check_same_device,
    check_same_dtype,
    check_small,
    check_step_sizes,
    check_steps,
    count,
    dtype_name,
    fail,
    named,
)
from .schemas import MAX_FEATURES, MAX_HISTORY, MAX_STATS

# ---- forecast_calibrate --------------------------------------------------------------------------


def forecast_calibrate(
    f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, h: float, h_prev: float, mode: Mode
) -> None:
    """Three tensors of one kind; f_km1 is written. h, h_prev: non-zero and of one sign."""
    op = "forecast_calibrate"
    check_lead(op, "f_k", f_k, mode)
    check_follow(op, "f_km1", f_km1, "f_k", f_k)
    check_follow(op, "d_anchor", d_anchor, "f_k", f_k)
    if mode.data:  # a traced float has no value to look at
        if f_k.dtype != torch.float64:  # the values the kernel sees
            h, h_prev = torch.tensor([h, h_prev], dtype=torch.float32).tolist()
        check_step_sizes(op, ("h", "h_prev"), h, h_prev)
    args = [("f_k", f_k), ("f_km1", f_km1), ("d_anchor", d_anchor)]
    check_own_memory(op, args, [False, True, False], mode)


def forecast_calibrate_tensor(
    f_k: Tensor, f_km1: Tensor, d_anchor: Tensor, steps: Tensor, mode: Mode, rotate: bool = False
) -> None:
    """As above with steps float32 [h, h_prev]; with ``rotate`` f_k is written too."""
    op = "forecast_calibrate"
    check_lead(op, "f_k", f_k, mode)
    check_follow(op, "f_km1", f_km1, "f_k", f_k)
    check_follow(op, "d_anchor", d_anchor, "f_k", f_k)
    check_steps(op, steps, f_k.device, mode)
    args = [("f_k", f_k), ("f_km1", f_km1), ("d_anchor", d_anchor), ("steps", steps)]
    check_own_memory(op, args, [rotate, True, False, False], mode)


def forecast_calibrate_list(
    f_k: Sequence[Tensor],
    f_km1: Sequence[Tensor],
    d_anchor: Sequence[Tensor],
    steps: Tensor,
    mode: Mode,
) -> None:
    """Triples of one dtype and device; shapes may differ between triples, not within one."""
    op = "forecast_calibrate"
    if not f_k:
        fail(op, "f_k", "at least 1 tensor", "0")
    for arg, tensors in (("f_km1", f_km1), ("d_anchor", d_anchor)):
        if len(tensors) != len(f_k):
            fail(op, arg, f"{count(len(f_k))} like f_k", str(len(tensors)))
    for i, t in enumerate(f_k):
        if i == 0:
            check_floating(op, "f_k[0]", t, mode)
        else:
            check_same_dtype(op, f"f_k[{i}]", t, "f_k[0]", f_k[0])
            check_same_device(op, f"f_k[{i}]", t, "f_k[0]", f_k[0])
        check_plain(op, f"f_k[{i}]", t)
        check_follow(op, f"f_km1[{i}]", f_km1[i], f"f_k[{i}]", t)
        check_follow(op, f"d_anchor[{i}]", d_anchor[i], f"f_k[{i}]", t)
    check_steps(op, steps, f_k[0].device, mode)
    args = [*named("f_k", f_k), *named("f_km1", f_km1), *named("d_anchor", d_anchor)]
    written = [name.startswith("f_km1") for name, _ in args]
    check_own_memory(op, [*args, ("steps", steps)], [*written, False], mode)


# ---- forecast ------------------------------------------------------------------------------------


def forecast(
    history: Sequence[Tensor], weights: Tensor, mode: Mode, out: Tensor | None = None
) -> None:
    """1 to 8 tensors of one kind, weights float32 [K]; out, if given, is one more of that kind."""
    op = "forecast"
    if not 1 <= len(history) <= MAX_HISTORY:
        fail(op, "history", f"1 to {MAX_HISTORY} tensors", str(len(history)))
    check_history(op, history, [("history[0]", history[0])] * len(history), mode)
    check_small(op, "weights", weights, history[0].device)
    if list(weights.shape) != [len(history)]:
        fail(op, "weights", f"shape [{len(history)}]", str(list(weights.shape)))
    check_plain(op, "weights", weights)
    if out is not None:
        check_follow(op, "out", out, "history[0]", history[0])
    check_finite(op, "weights", weights, mode)
    if out is not None:
        args = [*named("history", history), ("weights", weights), ("out", out)]
        check_own_memory(op, args, [name == "out" for name, _ in args], mode)


# ---- forecast_residual_ --------------------------------------------------------------------------


def _gate_dtype(op: str, arg: str, gate: Tensor, x: Tensor) -> None:
    if gate.dtype not in (x.dtype, torch.float32):
        both = "float32" if x.dtype == torch.float32 else f"{dtype_name(x.dtype)} or float32"
        fail(op, arg, f"dtype {both}", dtype_name(gate.dtype))


def forecast_residual_(
    x: Tensor, history: Sequence[Tensor], weights: Tensor, gates: Sequence[Tensor], mode: Mode
) -> tuple[int, int]:
    """x is written. K = weights.shape[-1], L = len(history) / K; returns (L, K)."""
    op = "forecast_residual_"
    check_lead(op, "x", x, mode)
    check_small(op, "weights", weights, x.device)
    if weights.dim() not in (1, 2):
        fail(op, "weights", "shape [K] or [L, K]", str(list(weights.shape)))
    k = weights.shape[-1]
    if not 1 <= k <= MAX_HISTORY:
        got = str(list(weights.shape))
        fail(op, "weights", f"1 to {MAX_HISTORY} weights per feature", got)
    check_plain(op, "weights", weights)
    n_features = len(history) // k
    if len(history) != n_features * k or not 1 <= n_features <= MAX_FEATURES:
        expected = f"{k} tensors for each of 1 to {MAX_FEATURES} features"
        fail(op, "history", expected, str(len(history)))
    if weights.dim() == 2 and weights.shape[0] != n_features:
        expected = f"shape [{k}] or [{n_features}, {k}]"
        fail(op, "weights", expected, str(list(weights.shape)))
    check_history(op, history, [("x", x)] * len(history), mode)
    if len(gates) not in (0, n_features):
        fail(op, "gates", f"0 or {count(n_features)}", str(len(gates)))
    if gates:
        _gates(op, x, gates)
    check_finite(op, "weights", weights, mode)
    args = [
        ("x", x), *named("history", history), ("weights", weights), *named("gates", gates)
    ]  # fmt: skip
    check_own_memory(op, args, [name == "x" for name, _ in args], mode)
    return n_features, k


def _gates(op: str, x: Tensor, gates: Sequence[Tensor]) -> None:
    if x.dim() == 0:
        fail(op, "x", "at least one dimension when gates are given", "shape []")
    d = x.shape[-1]
    shapes = [[d]]
    if x.dim() == 3:
        b, s, _ = x.shape
        shapes += [[1, 1, d], [b, 1, d], [b, s, d]]
    for i, gate in enumerate(gates):
        arg = f"gates[{i}]"
        if i == 0:
            _gate_dtype(op, arg, gate, x)
            check_same_device(op, arg, gate, "x", x)
            if list(gate.shape) not in shapes:
                listed = ", ".join(map(str, shapes[:-1]))
                listed = f"{listed} or {shapes[-1]}" if listed else str(shapes[-1])
                fail(op, arg, f"shape {listed}", str(list(gate.shape)))
            check_plain(op, arg, gate)
        else:
            check_follow(op, arg, gate, "gates[0]", gates[0])


def forecast_residual_packed_(
    x: Tensor, history: Tensor, weights: Tensor, gates: Tensor, mode: Mode
) -> tuple[int, int]:
    """x is written. history [L, K, *x.shape], gates [L, 1 or B, D] or empty; returns (L, K)."""
    op = "forecast_residual_"
    check_lead(op, "x", x, mode)
    check_floating(op, "history", history, mode)
    check_same_device(op, "history", history, "x", x)
    if history.dim() != x.dim() + 2 or history.shape[2:] != x.shape:
        inner = "".join(f", {n}" for n in x.shape)
        fail(op, "history", f"shape [L, K{inner}]", str(list(history.shape)))
    n_features, k = history.shape[:2]
    if not (1 <= n_features <= MAX_FEATURES and 1 <= k <= MAX_HISTORY):
        expected = f"1 to {MAX_FEATURES} features and 1 to {MAX_HISTORY} tensors for each"
        fail(op, "history", expected, f"shape {list(history.shape)}")
    check_plain(op, "history", history)
    check_small(op, "weights", weights, x.device)
    if list(weights.shape) not in ([k], [n_features, k]):
        expected = f"shape [{k}] or [{n_features}, {k}]"
        fail(op, "weights", expected, str(list(weights.shape)))
    check_plain(op, "weights", weights)
    if gates.numel() != 0:
        _gate_dtype(op, "gates", gates, x)
    check_same_device(op, "gates", gates, "x", x)
    if gates.numel() != 0:
        _packed_gate_shape(op, x, gates, n_features)
    check_plain(op, "gates", gates)
    check_finite(op, "weights", weights, mode)
    args = [("x", x), ("history", history), ("weights", weights), ("gates", gates)]
    check_own_memory(op, args, [True, False, False, False], mode)
    return n_features, k


def _packed_gate_shape(op: str, x: Tensor, gates: Tensor, n_features: int) -> None:
    if x.dim() != 3:
        fail(op, "x", "shape [B, S, D] when gates are given", str(list(x.shape)))
    b, _, d = x.shape
    if list(gates.shape) not in ([n_features, 1, d], [n_features, b, d]):
        expected = f"shape [{n_features}, 1, {d}] or [{n_features}, {b}, {d}]"
        fail(op, "gates", expected, str(list(gates.shape)))


# ---- commit_ -------------------------------------------------------------------------------------


def _transition(op: str, t: Tensor, k: int | None, device: torch.device) -> tuple[int, int]:
    """Shape [K + R, K + 1]; returns (K, R). ``k`` is None where the transition defines K."""
    check_small(op, "transition", t, device)
    expected = f"shape [{k} + R, {k + 1}]" if k else f"shape [K + R, K + 1], K up to {MAX_HISTORY}"
    got = str(list(t.shape))
    if t.dim() != 2:
        fail(op, "transition", expected, got)
    rows, columns = t.shape
    if k is None and 2 <= columns <= MAX_HISTORY + 1:
        k = columns - 1
    if k is None or columns != k + 1 or rows < k:
        fail(op, "transition", expected, got)
    if rows - k > MAX_STATS:
        fail(op, "transition", f"at most {MAX_STATS} rows beyond the history's {k}", got)
    check_plain(op, "transition", t)
    return k, rows - k


def _stats(op: str, stats: Tensor | None, shape: list[int], like: str, feature: Tensor) -> None:
    if shape[-1] == 0:
        if stats is None:
            return
        if stats.numel() != 0:
            expected = "None or an empty tensor as transition reduces no rows"
            fail(op, "stats", expected, f"shape {list(stats.shape)}")
        check_same_device(op, "stats", stats, like, feature)
        return
    if stats is None:
        fail(op, "stats", f"a float32 tensor of shape {shape}", "None")
    if stats.dtype != torch.float32:
        fail(op, "stats", "dtype float32", dtype_name(stats.dtype))
    check_same_device(op, "stats", stats, like, feature)
    if list(stats.shape) != shape:
        fail(op, "stats", f"shape {shape}", str(list(stats.shape)))
    check_plain(op, "stats", stats)


def commit_(
    feature: Tensor,
    history: Sequence[Tensor],
    transition: Tensor,
    stats: Tensor | None,
    mode: Mode,
) -> tuple[int, int]:
    """history and stats are written. transition [K + R, K + 1]; returns (K, R)."""
    op = "commit_"
    check_lead(op, "feature", feature, mode)
    if not 1 <= len(history) <= MAX_HISTORY:
        fail(op, "history", f"1 to {MAX_HISTORY} tensors", str(len(history)))
    check_history(op, history, [("feature", feature)] * len(history), mode)
    k, reduced = _transition(op, transition, len(history), feature.device)
    _stats(op, stats, [reduced], "feature", feature)
    check_finite(op, "transition", transition, mode)
    args = [("feature", feature), *named("history", history), ("transition", transition)]
    _commit_memory(op, args, stats, mode)
    return k, reduced


def commit_list_(
    features: Sequence[Tensor],
    history: Sequence[Tensor],
    transition: Tensor,
    stats: Tensor | None,
    mode: Mode,
) -> tuple[int, int]:
    """As commit_ for L features of one dtype; stats is [L, R]. Shapes may differ per feature."""
    op = "commit_"
    if not 1 <= len(features) <= MAX_FEATURES:
        fail(op, "features", f"1 to {MAX_FEATURES} tensors", str(len(features)))
    for i, t in enumerate(features):
        if i == 0:
            check_floating(op, "features[0]", t, mode)
        else:
            check_same_dtype(op, f"features[{i}]", t, "features[0]", features[0])
            check_same_device(op, f"features[{i}]", t, "features[0]", features[0])
        check_plain(op, f"features[{i}]", t)
    k, reduced = _transition(op, transition, None, features[0].device)
    if len(history) != len(features) * k:
        expected = f"{count(k)} for each of {count(len(features), 'feature')}"
        fail(op, "history", expected, str(len(history)))
    check_history(op, history, [f for f in named("features", features) for _ in range(k)], mode)
    _stats(op, stats, [len(features), reduced], "features[0]", features[0])
    check_finite(op, "transition", transition, mode)
    args = [*named("features", features), *named("history", history)]
    _commit_memory(op, [*args, ("transition", transition)], stats, mode)
    return k, reduced


def _commit_memory(op: str, args: list[Named], stats: Tensor | None, mode: Mode) -> None:
    if stats is not None:
        args = [*args, ("stats", stats)]
    written = [name.startswith("history") or name == "stats" for name, _ in args]
    check_own_memory(op, args, written, mode)
