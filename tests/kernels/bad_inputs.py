"""The table of refused calls: a valid call, what is wrong with it, and what the error must say.

Texts are written out in full, since the backends must agree on them word for word. ``{device}``
stands for the device of the features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from backends import Backend
from tensors import Maker

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
NAN, INF = math.nan, math.inf
SHAPE = (2, 3, 4)
L, K = 2, 3  # features, history of each

Change = Callable[[Any, dict[str, Any]], Any]  # (the argument, all arguments) -> the bad one


class Case(NamedTuple):
    function: str
    changes: dict[str, Change]  # by argument, or "history.1" for one of a list
    argument: str
    expected: str
    got: str

    @property
    def id(self) -> str:
        return f"{self.function}-{self.argument}-{self.got}".replace(" ", "_")


def valid_call(function: str, device: str) -> dict[str, Any]:
    """Arguments that every backend takes, by name, in schema order."""
    make = Maker(FP32, device)
    steps = torch.tensor([1.0, 0.5])
    lists = {name: make.many(L, *SHAPE) for name in ("f_k", "f_km1", "d_anchor")}
    triple = {name: tensors[0] for name, tensors in lists.items()}
    history, weights = make.many(K, *SHAPE), make.small(K)
    transition, stats = make.small(K + 2, K + 1), make.small(2, on_device=True)
    return {
        "forecast_calibrate": {**triple, "h": 1.0, "h_prev": 0.5},
        "forecast_calibrate_tensor": {**triple, "steps": steps},
        "forecast_calibrate_rotate": {**triple, "steps": steps},
        "forecast_calibrate_list": {**lists, "steps": steps},
        "forecast": {"history": history, "weights": weights},
        "forecast_out": {"history": history, "weights": weights, "out": make(*SHAPE)},
        "forecast_residual_": {
            "x": make(*SHAPE),
            "history": make.many(L * K, *SHAPE),
            "weights": make.small(L, K),
            "gates": make.many(L, 4),
        },
        "forecast_residual_packed_": {
            "x": make(*SHAPE),
            "history": make(L, K, *SHAPE),
            "weights": make.small(L, K),
            "gates": make(L, 1, 4),
        },
        "commit_": {
            "feature": make(*SHAPE),
            "history": history,
            "transition": transition,
            "stats": stats,
        },
        "commit_list_": {
            "features": make.many(L, *SHAPE),
            "history": make.many(L * K, *SHAPE),
            "transition": transition,
            "stats": make.small(L, 2, on_device=True),
        },
    }[function]


def bad_call(case: Case, backend: Backend) -> dict[str, Any]:
    args = valid_call(case.function, backend.device)
    for path, change in case.changes.items():
        name, _, index = path.partition(".")
        if index:
            args[name][int(index)] = change(args[name][int(index)], args)
        else:
            args[name] = change(args[name], args)
    return args


def to(dtype: torch.dtype) -> Change:
    return lambda t, _: t.to(dtype)


def shaped(*shape: int) -> Change:
    return lambda t, _: torch.ones(shape, dtype=t.dtype, device=t.device)


def of(*values: float) -> Change:
    return lambda t, _: torch.tensor(values).view_as(t)


def value(v: Any) -> Change:
    return lambda *_: v


def with_entry(index: int, v: float) -> Change:
    def change(t: Any, _: dict[str, Any]) -> Any:
        t.view(-1)[index] = v
        return t

    return change


def first(n: int) -> Change:
    return lambda tensors, _: tensors[:n]


def repeat(n: int) -> Change:
    return lambda tensors, _: [tensors[0].clone() for _ in range(n)]


def take(name: str, index: int | None = None) -> Change:
    """The same tensor as another argument: an exact overlap."""
    return lambda _, args: args[name] if index is None else args[name][index]


def shifted(name: str, index: int) -> Change:
    """Overlaps another argument by all but one row."""

    def change(t: Any, args: dict[str, Any]) -> Any:
        buffer = torch.ones(t.numel() + 4, dtype=t.dtype, device=t.device)
        args[name][index] = buffer[:-4].view(t.shape)
        return buffer[4:].view(t.shape)

    return change


def transposed(t: Any, _: dict[str, Any]) -> Any:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def strided(t: Any, _: dict[str, Any]) -> Any:
    return torch.stack([t, t], -1)[..., 0]


def negated(t: Any, _: dict[str, Any]) -> Any:
    return torch._neg_view(t)


def on_meta(t: Any, _: dict[str, Any]) -> Any:
    return t.to("meta")


def empty_on_meta(t: Any, _: dict[str, Any]) -> Any:
    return t.new_empty(0, device="meta")


def tracked(t: Any, _: dict[str, Any]) -> Any:
    return t.requires_grad_()


FLOATS = "dtype bfloat16, float16 or float32"
NO_GRAD = "no gradient tracking (inference only: use torch.no_grad())"
OWN, CONTIGUOUS, FINITE = "memory of its own", "a contiguous tensor", "finite values"
SIGNS = "h and h_prev non-zero and of one sign"
DIVISOR = "at least 1.17549e-38 in size, to divide by"
STRIDES = "strides [12, 1, 3] for shape [2, 3, 4]"
NOT_NEGATED, NEGATED = "a tensor without the negative bit", "is_neg()=True"
NONE_OR_EMPTY = "None or an empty tensor as transition reduces no rows"
SMALL_DEVICE = "device {small_device}"

# Rows: (what is changed, argument named, expected, got).
TABLE: dict[str, list[tuple[dict[str, Change], str, str, str]]] = {
    "forecast_calibrate": [
        ({"h": value(0.0)}, "h", SIGNS, "h=0 and h_prev=0.5"),
        ({"h": value(-1.0)}, "h", SIGNS, "h=-1 and h_prev=0.5"),
        ({"h": value(NAN)}, "h", "a finite value", "nan"),
        ({"h_prev": value(INF)}, "h_prev", "a finite value", "inf"),
        ({"h_prev": value(1e-300)}, "h", SIGNS, "h=1 and h_prev=0"),
        ({"h_prev": value(2.0**-130)}, "h_prev", DIVISOR, "7.34684e-40"),
        ({"f_k": to(torch.int64)}, "f_k", FLOATS, "int64"),
        ({"f_km1": take("f_k")}, "f_km1", OWN, "an overlap with f_k"),
        ({"f_km1": negated}, "f_km1", NOT_NEGATED, NEGATED),
        ({"f_km1": shaped(2, 3, 5)}, "f_km1", "shape [2, 3, 4] like f_k", "[2, 3, 5]"),
        ({"d_anchor": to(BF16)}, "d_anchor", "dtype float32 like f_k", "bfloat16"),
    ],
    "forecast_calibrate_tensor": [
        ({"f_km1": to(BF16)}, "f_km1", "dtype float32 like f_k", "bfloat16"),
        ({"d_anchor": shaped(2, 3, 5)}, "d_anchor", "shape [2, 3, 4] like f_k", "[2, 3, 5]"),
        ({"d_anchor": on_meta}, "d_anchor", "device {device} like f_k", "meta"),
        ({"f_k": transposed}, "f_k", CONTIGUOUS, STRIDES),
        ({"f_km1": tracked}, "f_km1", NO_GRAD, "requires_grad=True"),
        ({"steps": of(NAN, 1.0)}, "steps", FINITE, "nan at index 0"),
        ({"steps": of(1.0, -INF)}, "steps", FINITE, "-inf at index 1"),
        ({"steps": of(0.0, 1.0)}, "steps", SIGNS, "h=0 and h_prev=1"),
        ({"steps": of(0.25, -1.5)}, "steps", SIGNS, "h=0.25 and h_prev=-1.5"),
        ({"steps": to(FP64)}, "steps", "dtype float32", "float64"),
        ({"steps": shaped(3)}, "steps", "shape [2]", "[3]"),
        ({"steps": strided}, "steps", CONTIGUOUS, "strides [2] for shape [2]"),
        ({"f_km1": negated}, "f_km1", NOT_NEGATED, NEGATED),
    ],
    "forecast_calibrate_rotate": [
        ({"d_anchor": take("f_k")}, "f_k", OWN, "an overlap with d_anchor"),
        ({"f_k": take("f_km1")}, "f_k", OWN, "an overlap with f_km1"),
        ({"f_k": negated}, "f_k", NOT_NEGATED, NEGATED),
        ({"f_km1": negated}, "f_km1", NOT_NEGATED, NEGATED),
    ],
    "forecast_calibrate_list": [
        ({"f_k": value([])}, "f_k", "at least 1 tensor", "0"),
        ({"f_km1": first(1)}, "f_km1", "2 tensors like f_k", "1"),
        ({"d_anchor": repeat(3)}, "d_anchor", "2 tensors like f_k", "3"),
        ({"f_k.1": to(FP16)}, "f_k[1]", "dtype float32 like f_k[0]", "float16"),
        ({"f_km1.1": shaped(24)}, "f_km1[1]", "shape [2, 3, 4] like f_k[1]", "[24]"),
        ({"f_km1.1": take("d_anchor", 0)}, "f_km1[1]", OWN, "an overlap with d_anchor[0]"),
        ({"f_km1.1": take("f_km1", 0)}, "f_km1[0]", OWN, "an overlap with f_km1[1]"),
        ({"f_km1.1": negated}, "f_km1[1]", NOT_NEGATED, NEGATED),
        ({"f_k.0": to(torch.int64)}, "f_k[0]", FLOATS, "int64"),
        ({"f_k.1": on_meta}, "f_k[1]", "device {device} like f_k[0]", "meta"),
        ({"f_k.1": transposed}, "f_k[1]", CONTIGUOUS, STRIDES),
        ({"d_anchor.1": shaped(24)}, "d_anchor[1]", "shape [2, 3, 4] like f_k[1]", "[24]"),
        ({"steps": of(0.0, 1.0)}, "steps", SIGNS, "h=0 and h_prev=1"),
    ],
    "forecast": [
        ({"history": value([])}, "history", "1 to 8 tensors", "0"),
        ({"history": repeat(9)}, "history", "1 to 8 tensors", "9"),
        ({"history.0": to(torch.int32)}, "history[0]", FLOATS, "int32"),
        ({"history.0": to(torch.float8_e8m0fnu)}, "history[0]", FLOATS, "float8_e8m0fnu"),
        ({"history.1": to(BF16)}, "history[1]", "dtype float32 like history[0]", "bfloat16"),
        ({"history.2": on_meta}, "history[2]", "device {device} like history[0]", "meta"),
        ({"history.1": shaped(4, 6)}, "history[1]", "shape [2, 3, 4] like history[0]", "[4, 6]"),
        ({"history.0": transposed}, "history[0]", CONTIGUOUS, STRIDES),
        ({"history.0": lambda t, _: t.to_sparse()}, "history[0]", CONTIGUOUS, "layout sparse_coo"),
        ({"history.0": tracked}, "history[0]", NO_GRAD, "requires_grad=True"),
        ({"weights": shaped(4)}, "weights", "shape [3]", "[4]"),
        ({"weights": shaped(1, 3)}, "weights", "shape [3]", "[1, 3]"),
        ({"weights": to(FP64)}, "weights", "dtype float32", "float64"),
        ({"weights": on_meta}, "weights", SMALL_DEVICE, "meta"),
        ({"weights": of(1.0, INF, 0.0)}, "weights", FINITE, "inf at index 1"),
        ({"weights": tracked}, "weights", NO_GRAD, "requires_grad=True"),
    ],
    "forecast_out": [
        ({"out": to(FP16)}, "out", "dtype float32 like history[0]", "float16"),
        ({"out": shaped(2, 3)}, "out", "shape [2, 3, 4] like history[0]", "[2, 3]"),
        ({"out": strided}, "out", CONTIGUOUS, "strides [24, 8, 2] for shape [2, 3, 4]"),
        ({"out": take("history", 1)}, "out", OWN, "an overlap with history[1]"),
        ({"out": shifted("history", 0)}, "out", OWN, "an overlap with history[0]"),
        ({"out": tracked}, "out", NO_GRAD, "requires_grad=True"),
        ({"out": negated}, "out", NOT_NEGATED, NEGATED),
    ],
    "forecast_residual_": [
        ({"x": to(torch.bool)}, "x", FLOATS, "bool"),
        ({"x": transposed}, "x", CONTIGUOUS, STRIDES),
        ({"x": tracked}, "x", NO_GRAD, "requires_grad=True"),
        ({"history": first(5)}, "history", "3 tensors for each of 1 to 256 features", "5"),
        ({"history": value([])}, "history", "3 tensors for each of 1 to 256 features", "0"),
        ({"history": repeat(771)}, "history", "3 tensors for each of 1 to 256 features", "771"),
        ({"history": first(3)}, "weights", "shape [3] or [1, 3]", "[2, 3]"),
        ({"history.0": to(torch.uint8)}, "history[0]", FLOATS, "uint8"),
        ({"history.4": to(BF16)}, "history[4]", "dtype float32 like history[0]", "bfloat16"),
        ({"history.1": shaped(2, 4, 3)}, "history[1]", "shape [2, 3, 4] like x", "[2, 4, 3]"),
        ({"history.5": on_meta}, "history[5]", "device {device} like x", "meta"),
        ({"weights": shaped(2, 9)}, "weights", "1 to 8 weights per feature", "[2, 9]"),
        ({"weights": shaped(2, 0)}, "weights", "1 to 8 weights per feature", "[2, 0]"),
        ({"weights": shaped(1, 2, 3)}, "weights", "shape [K] or [L, K]", "[1, 2, 3]"),
        ({"weights": with_entry(4, NAN)}, "weights", FINITE, "nan at index 4"),
        ({"gates": first(1)}, "gates", "0 or 2 tensors", "1"),
        ({"gates.0": to(FP16)}, "gates[0]", "dtype float32", "float16"),
        ({"gates.1": to(BF16)}, "gates[1]", "dtype float32 like gates[0]", "bfloat16"),
        ({"gates.0": shaped(3)}, "gates[0]", "shape [4], [1, 1, 4], [2, 1, 4] or [2, 3, 4]", "[3]"),
        ({"gates.1": shaped(1, 1, 4)}, "gates[1]", "shape [4] like gates[0]", "[1, 1, 4]"),
        ({"gates.0": on_meta}, "gates[0]", "device {device} like x", "meta"),
        ({"x": take("history", 3)}, "x", OWN, "an overlap with history[3]"),
        ({"x": shifted("history", 0)}, "x", OWN, "an overlap with history[0]"),
        ({"gates": lambda g, a: [a["x"][0, 0], g[1]]}, "x", OWN, "an overlap with gates[0]"),
        ({"x": negated}, "x", NOT_NEGATED, NEGATED),
        ({"weights": to(FP64)}, "weights", "dtype float32", "float64"),
        ({"weights": strided}, "weights", CONTIGUOUS, "strides [6, 2] for shape [2, 3]"),
        ({"gates.0": strided}, "gates[0]", CONTIGUOUS, "strides [2] for shape [4]"),
        ({"x": lambda x, _: x.sum(), "history": lambda h, _: [t.sum() for t in h]},
         "x", "at least one dimension when gates are given", "shape []"),
    ],
    "forecast_residual_packed_": [
        ({"history": shaped(2, 3, 2, 3, 5)}, "history", "shape [L, K, 2, 3, 4]", "[2, 3, 2, 3, 5]"),
        ({"history": shaped(3, 2, 3, 4)}, "history", "shape [L, K, 2, 3, 4]", "[3, 2, 3, 4]"),
        ({"history": shaped(257, 1, 2, 3, 4)},
         "history", "1 to 256 features and 1 to 8 tensors for each", "shape [257, 1, 2, 3, 4]"),
        ({"history": shaped(2, 9, 2, 3, 4)},
         "history", "1 to 256 features and 1 to 8 tensors for each", "shape [2, 9, 2, 3, 4]"),
        ({"weights": shaped(2)}, "weights", "shape [3] or [2, 3]", "[2]"),
        ({"gates": shaped(2, 3, 4)}, "gates", "shape [2, 1, 4] or [2, 2, 4]", "[2, 3, 4]"),
        ({"gates": to(BF16)}, "gates", "dtype float32", "bfloat16"),
        ({"x": lambda x, a: a["history"][1, 2]}, "x", OWN, "an overlap with history"),
        ({"x": negated}, "x", NOT_NEGATED, NEGATED),
        ({"x": lambda x, _: x.view(6, 4), "history": shaped(2, 3, 6, 4)},
         "x", "shape [B, S, D] when gates are given", "[6, 4]"),
        ({"x": to(torch.bool)}, "x", FLOATS, "bool"),
        ({"history": to(torch.uint8)}, "history", FLOATS, "uint8"),
        ({"history": on_meta}, "history", "device {device} like x", "meta"),
        ({"history": transposed},
         "history", CONTIGUOUS, "strides [72, 24, 12, 1, 3] for shape [2, 3, 2, 3, 4]"),
        ({"weights": to(FP64)}, "weights", "dtype float32", "float64"),
        ({"weights": strided}, "weights", CONTIGUOUS, "strides [6, 2] for shape [2, 3]"),
        ({"weights": with_entry(4, NAN)}, "weights", FINITE, "nan at index 4"),
        ({"gates": strided}, "gates", CONTIGUOUS, "strides [8, 8, 2] for shape [2, 1, 4]"),
        ({"gates": empty_on_meta}, "gates", "device {device} like x", "meta"),
    ],
    "commit_": [
        ({"feature": to(torch.complex64)}, "feature", FLOATS, "complex64"),
        ({"feature": transposed}, "feature", CONTIGUOUS, STRIDES),
        ({"history": value([])}, "history", "1 to 8 tensors", "0"),
        ({"history": repeat(9)}, "history", "1 to 8 tensors", "9"),
        ({"history.2": to(FP16)}, "history[2]", "dtype float32 like history[0]", "float16"),
        ({"history.0": shaped(24)}, "history[0]", "shape [2, 3, 4] like feature", "[24]"),
        ({"history.1": tracked}, "history[1]", NO_GRAD, "requires_grad=True"),
        ({"transition": shaped(2, 4)}, "transition", "shape [3 + R, 4]", "[2, 4]"),
        ({"transition": shaped(5, 5)}, "transition", "shape [3 + R, 4]", "[5, 5]"),
        ({"transition": shaped(12)}, "transition", "shape [3 + R, 4]", "[12]"),
        ({"transition": shaped(12, 4)},
         "transition", "at most 8 rows beyond the history's 3", "[12, 4]"),
        ({"transition": to(BF16)}, "transition", "dtype float32", "bfloat16"),
        ({"transition": on_meta}, "transition", SMALL_DEVICE, "meta"),
        ({"transition": lambda t, _: t.t().contiguous().t()},
         "transition", CONTIGUOUS, "strides [1, 5] for shape [5, 4]"),
        ({"transition": with_entry(7, -INF)}, "transition", FINITE, "-inf at index 7"),
        ({"stats": value(None)}, "stats", "a float32 tensor of shape [2]", "None"),
        ({"stats": shaped(3)}, "stats", "shape [2]", "[3]"),
        ({"stats": to(FP64)}, "stats", "dtype float32", "float64"),
        ({"stats": on_meta}, "stats", "device {device} like feature", "meta"),
        ({"transition": shaped(3, 4)}, "stats", NONE_OR_EMPTY, "shape [2]"),
        ({"history.1": take("feature")}, "history[1]", OWN, "an overlap with feature"),
        ({"history.2": take("history", 0)}, "history[0]", OWN, "an overlap with history[2]"),
        ({"feature": shifted("history", 2)}, "history[2]", OWN, "an overlap with feature"),
        ({"stats": lambda t, a: a["feature"].view(-1)[:2]},
         "stats", OWN, "an overlap with feature"),
        ({"history.1": negated}, "history[1]", NOT_NEGATED, NEGATED),
        ({"stats": negated}, "stats", NOT_NEGATED, NEGATED),
        ({"stats": strided}, "stats", CONTIGUOUS, "strides [2] for shape [2]"),
        ({"transition": shaped(3, 4), "stats": empty_on_meta},
         "stats", "device {device} like feature", "meta"),
    ],
    "commit_list_": [
        ({"features": value([])}, "features", "1 to 256 tensors", "0"),
        ({"features": repeat(257)}, "features", "1 to 256 tensors", "257"),
        ({"features.1": to(BF16)}, "features[1]", "dtype float32 like features[0]", "bfloat16"),
        ({"history": first(5)}, "history", "3 tensors for each of 2 features", "5"),
        ({"history.4": shaped(24)}, "history[4]", "shape [2, 3, 4] like features[1]", "[24]"),
        ({"transition": shaped(10, 10)},
         "transition", "shape [K + R, K + 1], K up to 8", "[10, 10]"),
        ({"transition": shaped(2, 4)}, "transition", "shape [K + R, K + 1], K up to 8", "[2, 4]"),
        ({"stats": shaped(2)}, "stats", "shape [2, 2]", "[2]"),
        ({"history.3": take("history", 2)}, "history[2]", OWN, "an overlap with history[3]"),
        ({"history.5": negated}, "history[5]", NOT_NEGATED, NEGATED),
        ({"stats": negated}, "stats", NOT_NEGATED, NEGATED),
        ({"features.0": to(torch.int32)}, "features[0]", FLOATS, "int32"),
        ({"features.1": on_meta}, "features[1]", "device {device} like features[0]", "meta"),
        ({"features.1": transposed}, "features[1]", CONTIGUOUS, STRIDES),
        ({"transition": with_entry(7, -INF)}, "transition", FINITE, "-inf at index 7"),
    ],
}  # fmt: skip

CASES = [Case(function, *row) for function, rows in TABLE.items() for row in rows]
