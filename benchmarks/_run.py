"""Measures one case: all its providers and a copy of the same bytes, in one run."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import torch
from _cases import Case
from _measure import MAX_COPY_BYTES, Call, Results, copy_calls, rotations, time_in_turn


def run_case(
    case: Case, device: str, results: Results, rounds: int, cold: bool = True, **more: Any
) -> list[dict[str, Any]]:
    """One row per provider: milliseconds, GB/s of the bytes that must move, GB/s of a copy.

    A provider that fails is reported and left out: one broken rival does not cost the run.

    Args:
        cold: rotate buffers, so that every call finds its data out of the caches.
        more: further columns.
    """
    torch.manual_seed(0)
    first = case.inputs()
    nbytes = case.nbytes(first)
    n_sets = rotations(nbytes) if cold else 1
    sets = [first, *(case.inputs() for _ in range(n_sets - 1))]
    copied = min(nbytes, MAX_COPY_BYTES)
    runs = {"copy": copy_calls(copied, device, n_sets)}
    for name, provider in case.providers.items():
        try:
            calls = [provider(inputs) for inputs in sets]
            calls[0]()
        except Exception as error:
            results.left_out(
                f"{case.name} by {name}", f"{type(error).__name__}: {_first_line(error)}"
            )
            continue
        runs[name] = calls
    times = time_in_turn(runs, device, rounds)
    times["copy"] *= nbytes / copied
    copy_gbs = nbytes / times["copy"] / 1e6
    return [
        results.measured(
            case.name,
            name,
            case.dtype,
            case.shape,
            ms,
            nbytes,
            copy_gbs,
            elements=case.elements,
            buffer_sets=n_sets,
            **more,
        )
        for name, ms in times.items()
    ]


def in_own_process(measure: Callable[[], Any]) -> Any:
    """What `measure` returns, called in a fork of this process, so with memory as of a new one.

    A process that has run OpenMP's threads must not be forked: call this before any tensor is
    computed.

    Raises:
        EOFError: It died; why is on stderr.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(measure()))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def call_ms(call: Call, device: str, calls: int = 1000, rounds: int = 5) -> float:
    """Milliseconds from one call to the next as the host sees them: the best of all rounds.

    On a GPU the queue is kept short, so this is what issuing a call costs, or running it if that
    takes longer.
    """
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, 1e3 * (time.perf_counter() - started) / calls)
    return best


def graph_ms(call: Call, copies: int = 50, rounds: int = 20) -> float:
    """Milliseconds per call in a captured CUDA graph of `copies` of them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(copies):
            call()
    replay = {"graph": [graph.replay]}
    return time_in_turn(replay, "cuda", rounds)["graph"] / copies


def latency(
    case: Case, device: str, results: Results, calls: int = 1000, only: set[str] | None = None
) -> None:
    """What a call on few elements costs, issued one by one and from a captured graph."""
    inputs = case.inputs()
    for name, provider in case.providers.items():
        if only is not None and name not in only:
            continue
        what = f"call of {case.name}"
        try:
            call = provider(inputs)
            call()
            ways = {"one by one": call_ms(call, device, calls)}
            if device != "cpu" and "compile" not in name:
                ways["graph"] = graph_ms(call)
        except Exception as error:
            results.left_out(f"{what} by {name}", f"{type(error).__name__}: {_first_line(error)}")
            continue
        for way, ms in ways.items():
            results.measured(
                what, name, case.dtype, case.shape, ms, elements=case.elements, issued=way
            )
            print(f"  {case.name:<36}{name:<20}{way:<12}{1e3 * ms:>8.2f} us")
