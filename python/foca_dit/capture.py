"""How a step becomes a CUDA graph, and what of it could not.

A capture that fails does harm: before torch 2.13 the allocator and the random generator go on as
if it were under way. So a step is first run under watch, and captured only if it may be.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Run = Callable[[], Any]
Replay = Callable[[], None]
aten = torch.ops.aten

READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten.equal.default,
    aten.bincount.default,
}
# These read the places where a mask is true.
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
COPIES = {aten._to_copy.default, aten.copy_.default}
MAKERS = {torch.tensor, torch.as_tensor}
MASKS = (torch.bool, torch.uint8)


class NotCapturable(RuntimeError):
    """The step does what a graph cannot hold; the message says what."""


class _Numbers(TorchFunctionMode):
    """Raises where a step makes a tensor of Python numbers on the device: it copies them there."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in MAKERS and not isinstance(kwargs.get("data", args and args[0]), torch.Tensor):
            given = kwargs.get("device")
            if given is not None and torch.device(given).type == self._device.type:
                raise NotCapturable(f"the step copies numbers to the device ({func.__name__})")
        return func(*args, **kwargs)


class _Reads(TorchDispatchMode):
    """Raises where a step reads values on the host, or copies from there or to it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in READS or (func in INDEXED and any(map(_is_mask, args[1]))):
            raise NotCapturable(f"the step reads values on the host ({func})")
        output = func(*args, **(kwargs or {}))
        if func in COPIES:
            source = args[1] if func is aten.copy_.default else args[0]
            if source.device.type != output.device.type:
                raise NotCapturable(f"the step copies to or from the host ({func})")
        return output


def _is_mask(index: Any) -> bool:
    return index is not None and index.dtype in MASKS


def watched(run: Run, device: torch.device) -> Any:
    """Runs a step that is to be captured.

    Raises:
        NotCapturable: it cannot be.
    """
    with _Numbers(device), _Reads():
        return run()


replaying = threading.Lock()
"""Held from a replay until what it filled is copied: the next one may fill the same memory."""

_capturing = threading.Lock()
_broken: list[str] = []  # why no more captures are made in this process


@cache
def _place(device: torch.device, stream: int) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """The side stream for captures that are replayed on `stream`, and a graph that never goes.

    All of them take their memory from that graph's pool, and their libraries the workspaces of that
    side stream: there are no more of either than there are streams. A stream runs one replay after
    the other, and `replaying` keeps the threads that share a stream from each other's outputs.
    """
    side, first = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        first.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=device)
        first.capture_end()
    return side, first


def _captured(graph: torch.cuda.CUDAGraph, run: Run, pool: Any) -> Any:
    collects = gc.isenabled()
    gc.disable()  # before torch 2.13 a graph that is collected meanwhile breaks the capture
    try:
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        output = run()
        graph.capture_end()
    except BaseException as error:
        _broken.append(f"an earlier capture failed: {error}".splitlines()[0])
        with suppress(Exception):
            graph.capture_end()
        raise
    finally:
        if collects:
            gc.enable()
    return output


def captured_on_cuda(run: Run, device: torch.device) -> tuple[Replay, Any]:
    """(replay, output): a graph of what `run` launches, and the tensors that every replay fills.

    Not through `torch.cuda.graph`, which collects garbage and empties the allocator's cache first:
    that would cost more than a generation gains.
    """
    if _broken:
        raise NotCapturable(_broken[0])
    with _capturing, torch.cuda.device(device):
        current = torch.cuda.current_stream()
        side, first = _place(device, current.cuda_stream)
        graph = torch.cuda.CUDAGraph()
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side):
                run()  # loads kernels and makes workspaces, which a capture cannot
                output = _captured(graph, run, first.pool())
        finally:
            current.wait_stream(side)
    return graph.replay, output


CAPTURES: dict[str, Callable[[Run, torch.device], tuple[Replay, Any]]] = {"cuda": captured_on_cuda}
"""By type of device, how a graph is made."""


def stream_of(device: torch.device) -> int:
    """The stream that work goes to now; a graph is replayed on the one it was captured for."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def is_capturing(device: torch.device) -> bool:
    """Whether somebody else captures already."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
