"""The rules the checks are made of: one function per property of an argument, and the error.

Each rule raises ``RuntimeError`` through :func:`fail` or returns nothing. ``checks.py`` puts them
together per operator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

SMALLEST = torch.finfo(torch.float32).smallest_normal  # float32 holds its reciprocal

Named = tuple[str, Tensor]


class Mode(NamedTuple):
    """What a caller of the checks supports.

    Attributes:
        float64: float64 tensors are accepted (the PyTorch reference computes in float64).
        data: tensors have memory that may be looked at; False for fake and meta tensors.
    """

    float64: bool
    data: bool


KERNEL = Mode(float64=False, data=True)
REFERENCE = Mode(float64=True, data=True)
FAKE = Mode(float64=True, data=False)


def fail(op: str, arg: str, expected: str, got: str) -> NoReturn:
    """Raises the one error every refusal uses."""
    raise RuntimeError(f"foca::{op}: argument '{arg}': expected {expected}, got {got}")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def count(n: int, noun: str = "tensor") -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


# ---- single tensors ------------------------------------------------------------------------------


def check_floating(op: str, arg: str, t: Tensor, mode: Mode) -> None:
    if t.dtype in (torch.bfloat16, torch.float16, torch.float32):
        return
    if t.dtype == torch.float64 and mode.float64:
        return
    fail(op, arg, "dtype bfloat16, float16 or float32", dtype_name(t.dtype))


def check_same_dtype(op: str, arg: str, t: Tensor, like: str, other: Tensor) -> None:
    if t.dtype != other.dtype:
        fail(op, arg, f"dtype {dtype_name(other.dtype)} like {like}", dtype_name(t.dtype))


def check_same_device(op: str, arg: str, t: Tensor, like: str, other: Tensor) -> None:
    if t.device != other.device:
        fail(op, arg, f"device {other.device} like {like}", str(t.device))


def check_same_shape(op: str, arg: str, t: Tensor, like: str, other: Tensor) -> None:
    if t.shape != other.shape:
        fail(op, arg, f"shape {list(other.shape)} like {like}", str(list(t.shape)))


def check_plain(op: str, arg: str, t: Tensor) -> None:
    """Row-major memory and no gradient tracking."""
    if t.layout != torch.strided:
        fail(op, arg, "a contiguous tensor", f"layout {str(t.layout).removeprefix('torch.')}")
    if not t.is_contiguous():
        got = f"strides {list(t.stride())} for shape {list(t.shape)}"
        fail(op, arg, "a contiguous tensor", got)
    if t.requires_grad and torch.is_grad_enabled():
        expected = "no gradient tracking (inference only: use torch.no_grad())"
        fail(op, arg, expected, "requires_grad=True")


def check_lead(op: str, arg: str, t: Tensor, mode: Mode) -> None:
    """The tensor that the others are compared with."""
    check_floating(op, arg, t, mode)
    check_plain(op, arg, t)


def check_follow(op: str, arg: str, t: Tensor, like: str, other: Tensor) -> None:
    """A tensor that equals ``other`` in dtype, device and shape."""
    check_same_dtype(op, arg, t, like, other)
    check_same_device(op, arg, t, like, other)
    check_same_shape(op, arg, t, like, other)
    check_plain(op, arg, t)


def check_history(op: str, history: Sequence[Tensor], shapes: Sequence[Named], mode: Mode) -> None:
    """One dtype for all; slot i has the device and shape of ``shapes[i]``."""
    for i, (t, (like, other)) in enumerate(zip(history, shapes, strict=True)):
        arg = f"history[{i}]"
        if i == 0:
            check_floating(op, arg, t, mode)
        else:
            check_same_dtype(op, arg, t, "history[0]", history[0])
        check_same_device(op, arg, t, like, other)
        check_same_shape(op, arg, t, like, other)
        check_plain(op, arg, t)


# ---- small tensors: weights, steps, transition ---------------------------------------------------


def check_small(op: str, arg: str, t: Tensor, device: torch.device) -> None:
    """float32 on the CPU or on the features' device; the caller checks the shape first."""
    if t.dtype != torch.float32:
        fail(op, arg, "dtype float32", dtype_name(t.dtype))
    if t.device.type != "cpu" and t.device != device:
        where = "cpu" if device.type == "cpu" else f"cpu or {device}"
        fail(op, arg, f"device {where}", str(t.device))


def check_finite(op: str, arg: str, t: Tensor, mode: Mode) -> None:
    """Host values only: values on a device are never synchronised with."""
    if not mode.data or t.device.type != "cpu":
        return
    for i, value in enumerate(t.flatten().tolist()):
        if not math.isfinite(value):
            fail(op, arg, "finite values", f"{value:g} at index {i}")


def check_step_sizes(op: str, args: tuple[str, str], h: float, h_prev: float) -> None:
    """Finite, non-zero and of one sign. ``args`` names the arguments that hold h and h_prev."""
    for i, (arg, value) in enumerate(zip(args, (h, h_prev), strict=True)):
        if not math.isfinite(value):
            if args[0] == args[1]:
                fail(op, arg, "finite values", f"{value:g} at index {i}")
            fail(op, arg, "a finite value", f"{value:g}")
    if h == 0 or h_prev == 0 or (h > 0) != (h_prev > 0):
        got = f"h={h:g} and h_prev={h_prev:g}"
        fail(op, args[0], "h and h_prev non-zero and of one sign", got)
    if abs(h_prev) < SMALLEST:
        expected = f"at least {SMALLEST:g} in size, to divide by"
        fail(op, args[1], expected, f"{h_prev:g}")


def check_steps(op: str, steps: Tensor, device: torch.device, mode: Mode) -> None:
    check_small(op, "steps", steps, device)
    if list(steps.shape) != [2]:
        fail(op, "steps", "shape [2]", str(list(steps.shape)))
    check_plain(op, "steps", steps)
    if mode.data and steps.device.type == "cpu":
        check_step_sizes(op, ("steps", "steps"), *steps.tolist())


# ---- memory --------------------------------------------------------------------------------------


def _range(t: Tensor) -> tuple[int, int]:
    start = t.data_ptr()
    return start, start + t.numel() * t.element_size()


def check_not_negated(op: str, arg: str, t: Tensor) -> None:
    """A written tensor's memory holds its values, not their negatives."""
    if t.is_neg():
        fail(op, arg, "a tensor without the negative bit", "is_neg()=True")


def check_own_memory(op: str, args: Sequence[Named], written: Sequence[bool], mode: Mode) -> None:
    """A written tensor shares no byte with any other argument. Empty tensors never overlap."""
    for (arg, t), is_written in zip(args, written, strict=True):
        if is_written:
            check_not_negated(op, arg, t)
    if not mode.data:
        return
    spans = [(*_range(t), str(t.device), i) for i, (_, t) in enumerate(args) if t.numel()]
    # Sorted by start, an overlap shows between a span and the farthest end seen before it: of all
    # spans for a written one, of written ones for a read one. Only then is the pair looked up.
    end_all: dict[str, int] = {}
    end_written: dict[str, int] = {}
    for start, end, device, i in sorted(spans):
        limit = end_all if written[i] else end_written
        if start < limit.get(device, 0):
            _name_overlap(op, args, written)
        end_all[device] = max(end, end_all.get(device, 0))
        if written[i]:
            end_written[device] = max(end, end_written.get(device, 0))


def _name_overlap(op: str, args: Sequence[Named], written: Sequence[bool]) -> NoReturn:
    """Names the first written argument, in schema order, that overlaps another one."""
    for i, (arg, t) in enumerate(args):
        if not written[i]:
            continue
        start, end = _range(t)
        for j, (other, o) in enumerate(args):
            if i == j or not o.numel() or not t.numel() or o.device != t.device:
                continue
            first, last = _range(o)
            if start < last and first < end:
                fail(op, arg, "memory of its own", f"an overlap with {other}")
    raise AssertionError("unreachable: an overlap was seen")


def named(name: str, tensors: Sequence[Tensor]) -> list[Named]:
    return [(f"{name}[{i}]", t) for i, t in enumerate(tensors)]
