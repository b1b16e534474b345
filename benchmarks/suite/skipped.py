"""Part `skip`: what a skipped step costs at the shapes of published models, and where it goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import _cases as cases
import _cases_lists as lists
import torch
from _measure import MAX_COPY_BYTES, table
from _run import run_case

from foca_dit import FullSteps, foca_cache_stats
from foca_dit.adapters import block_hooks
from foca_dit.adapters.published import PUBLISHED, Request
from foca_dit.capture import CAPTURES
from foca_dit.config import GRANULARITIES
from foca_dit.history import FeatureHistories

from . import models
from .models import Workload
from .run import Run, why
from .timeline import trace

ANCHORS = (0, 1, 2)  # full steps; all later ones are skipped
SLOW_MS = 2000  # a full step of this is timed once
MANY = 1000  # steps of the loop that the skipped ones are taken from
# Frames to try where a history of every module does not fit the memory.
FRAMES = (129, 97, 81, 65, 49, 33, 17, 9, 5, 1)
PIECES = ("embedding", "gates", "collapsed", "head")


def skip_part(run: Run) -> None:
    whole_steps(run, "flux.1-dev")
    collapsed(run, "flux.1-dev")
    whole_steps(run, "dit-xl/2-256")
    collapsed(run, "dit-xl/2-256")
    collapsed(run, "hunyuan-video")
    collapsed(run, "wan2.1-14b")
    collapsed(run, "dit-xl/2-512")
    collapsed_in_one_graph(run, "flux.1-dev")
    whole_steps(run, "dit-xl/2-512")
    collapsed_in_one_graph(run, "dit-xl/2-256")
    whole_steps(run, "wan2.1-14b")
    whole_steps(run, "hunyuan-video")


# The collapsed part alone ------------------------------------------------------------------------


def shape_of(run: Run, name: str) -> tuple[Request, tuple[int, int, int], int]:
    """The request whose histories fit the memory, its stream, and how many histories there are."""
    request, count = PUBLISHED[name].request, models.features(name)
    if run.tiny:
        return request, (request.batch, 16, 32), min(count, 6)
    free = run.free_bytes()
    for frames in [f for f in FRAMES if f <= request.frames] or [1]:
        smaller = replace(request, frames=frames)
        b, s, d = models.stream(name, smaller)
        held = 2 * b * s * d * (3 * count + 4)
        if held + min(held, MAX_COPY_BYTES) < 0.9 * free:
            break
    return smaller, (b, s, d), count


def collapsed(run: Run, name: str) -> None:
    """All forecasts of a step: in one launch, one by one, in eager PyTorch, compiled in groups."""
    request, shape, count = shape_of(run, name)
    case = lists.residual_case(count, shape, run.device, rivals=False)
    what = f"collapsed skip, {name}"
    if not run.budget.allows(run.results, what, 20 if run.on_gpu else 0):
        return
    for provider in cases.kernels_of("forecast_residual_", run.device):
        lists.by_group(case, 1, provider, run.device)
    if not run.tiny:
        lists.by_group(case, min(8, count), "compile-in-place", run.device)
    print(f"\n{what}: {count} histories of {list(shape)}, {request.frames} frames")
    _run(run, case, model=name, frames=request.frames, features=count, part="collapsed")
    packed = lists.packed_case(count, shape, run.device)
    _run(run, packed, model=name, frames=request.frames, features=count, part="collapsed")


def collapsed_in_one_graph(run: Run, name: str) -> None:
    """The same compiled whole: hundreds of inputs, so that compiling takes minutes."""
    request, shape, count = shape_of(run, name)
    if not run.budget.allows(run.results, f"collapsed skip compiled whole, {name}", 150):
        return
    case = lists.residual_case(count, shape, run.device, rivals=True)
    case.leave_out("eager", "foreach", *(["compile"] if run.tiny else []))
    case.providers.pop("compile", None)  # minutes of compiling: the form in place is enough
    _run(run, case, model=name, frames=request.frames, features=count, part="collapsed")


def _run(run: Run, case: Any, **columns: Any) -> None:
    try:
        rows = run_case(case, run.device, run.results, run.rounds, cold=run.on_gpu, **columns)
        print(table(rows))
    except torch.cuda.OutOfMemoryError:
        run.results.left_out(case.name, "out of memory")
    del case
    run.release()


# The whole step ----------------------------------------------------------------------------------


def whole_steps(run: Run, name: str) -> None:
    """A full step, a skipped one at each granularity, its pieces, and its replay as one graph."""
    what = f"whole skipped step, {name}"
    if not run.budget.allows(run.results, what, 60 if run.on_gpu else 0):
        return
    try:
        workload = models.build(name, run.device, run.tiny)
        full_ms = run.ms(lambda: workload.call(workload.sample, 0.5), repeats=1)
        # Every granularity commits the anchors, and once more for its graph.
        anchors_s = 1e-3 * full_ms * len(ANCHORS) * 2 * len(GRANULARITIES)
        if run.on_gpu and not run.budget.allows(run.results, what, anchors_s):
            return
        repeats = 1 if full_ms > SLOW_MS else 3 if run.on_gpu else 2
        if repeats > 1:
            full_ms = run.ms(lambda: workload.call(workload.sample, 0.5), repeats)
        print(f"\n{what} ({workload.source}): a full step takes {full_ms:.2f} ms")
        _row(run, workload, "full step", "eager", full_ms)
        for granularity in GRANULARITIES:
            _skipped(run, workload, granularity, full_ms)
        if name.startswith("dit") and run.budget.allows(run.results, f"compiled step, {name}", 90):
            model = torch.compile(workload.model) if run.on_gpu else workload.model
            compiled = replace(workload, model=model)
            ms = run.ms(lambda: compiled.call(workload.sample, 0.5), repeats, warm=2)
            _row(run, workload, "full step", "compile" if run.on_gpu else "eager again", ms)
    except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
        run.results.left_out(what, why(error))
    run.release()


def _skipped(run: Run, workload: Workload, granularity: str, full_ms: float) -> None:
    held = models.features(workload.name) if granularity == "module" else 1
    b, s, d = models.stream(workload.name, workload.request)
    if run.on_gpu and 2 * b * s * d * (3 * held + 8) > 0.9 * run.free_bytes():
        case = f"skipped step, {granularity}"
        run.results.left_out(f"{workload.name}: {case}", "its histories do not fit the memory")
        return
    with workload.cached(granularity, FullSteps(ANCHORS)):
        step = stepper(workload)
        for _ in ANCHORS:
            step()
        ms = run.ms(step)
        with stopwatch(run.device) as watch:
            for _ in range(run.rounds):
                watch.begin()
                step()
                watch.end()
        pieces = watch.milliseconds()
        seen = trace(step, run.device)
        _row(
            run, workload, f"skipped step, {granularity}", "foca", ms, share=ms / full_ms,
            pieces=pieces, **{k: v for k, v in seen.items() if k != "spans"},
        )  # fmt: skip
        run.results.add(
            case=f"timeline, {granularity}", provider="foca", spans=seen["spans"],
            **models.of_shape(workload),
        )  # fmt: skip
        shown = ", ".join(f"{name} {value:.3f}" for name, value in pieces.items())
        print(
            f"  {granularity:<8}{ms:>9.3f} ms {ms / full_ms:>7.2%} of a full step; "
            f"{seen['launches']} launches; ms: {shown}"
        )
    if granularity != "output" and workload.sample.device.type in CAPTURES:
        _graphed(run, workload, granularity, full_ms)


def _graphed(run: Run, workload: Workload, granularity: str, full_ms: float) -> None:
    """The same, replayed as one graph: what a user gets with `cuda_graph=True`."""
    case = f"skipped step, {granularity}"
    with workload.cached(granularity, FullSteps(ANCHORS), cuda_graph=True):
        step = stepper(workload)
        for _ in ANCHORS:
            step()
        ms = run.ms(step)
        seen = trace(step, run.device)
        stats = foca_cache_stats(workload.model)
    if refused := stats["graph_refusals"]:
        run.results.left_out(f"{workload.name}: {case}, one graph", "; ".join(refused))
        return
    _row(
        run, workload, case, "foca, one graph", ms, share=ms / full_ms,
        launches=sum(seen["issued"].values()) or seen["launches"],
        issued=seen["issued"], host_us=seen["host_us"],
    )  # fmt: skip
    print(f"  {granularity:<8}{ms:>9.3f} ms {ms / full_ms:>7.2%} as one graph")


def _row(
    run: Run, workload: Workload, case: str, provider: str, ms: float, **more: Any
) -> dict[str, Any]:
    dtype = str(run.dtype).removeprefix("torch.")
    return run.results.measured(
        case, provider, dtype, workload.sample.shape, ms, **models.of_shape(workload), **more
    )


def stepper(workload: Workload) -> Callable[[], torch.Tensor]:
    """Calls the model at the next step of one long generation, every time it is called."""
    step = iter(range(MANY))
    return lambda: workload.call(workload.sample, 1 - next(step) / MANY)


# Its pieces --------------------------------------------------------------------------------------


class Stopwatch:
    """Marks on the device's own clock between the pieces of skipped steps."""

    def __init__(self, device: str) -> None:
        self._cuda = device != "cpu"
        self._steps: list[list[Any]] = []

    def begin(self) -> None:
        self._steps.append([])
        self.mark()

    def mark(self) -> None:
        if not self._cuda:
            self._steps[-1].append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._steps[-1].append(event)

    end = mark

    def milliseconds(self) -> dict[str, float]:
        """Median of each piece; none where a step has other pieces (granularity output)."""
        if self._cuda:
            torch.cuda.synchronize()
        steps = [marks for marks in self._steps if len(marks) == 6]
        if not steps:
            return {}

        def between(a: Any, b: Any) -> float:
            return a.elapsed_time(b) if self._cuda else 1e3 * (b - a)

        # begin, gates begin, gates end, forecasts begin, forecasts end, end
        places = ((0, 1), (1, 2), (3, 4), (4, 5))
        return {
            name: statistics.median(between(marks[a], marks[b]) for marks in steps)
            for name, (a, b) in zip(PIECES, places, strict=True)
        }


@contextmanager
def stopwatch(device: str) -> Iterator[Stopwatch]:
    """Marks before and after the gates and the collapsed forecasts of every step inside."""
    watch = Stopwatch(device)

    def marked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            watch.mark()
            try:
                return function(*args, **kwargs)
            finally:
                watch.mark()

        return call

    add = FeatureHistories.add_forecasts_
    with (
        patch.object(block_hooks, "gates_ahead", marked(block_hooks.gates_ahead)),
        patch.object(FeatureHistories, "add_forecasts_", marked(add)),
    ):
        yield watch
