"""Part `commit`: what statistics cost beside separate passes, and what hides behind a full step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import _cases as cases
import _cases_lists as lists
import _plain as plain
import torch
from _measure import Call, table
from _run import run_case
from torch import Tensor

import foca_dit.history
from foca_dit import FoCaCacheConfig, Interval, apply_foca_cache, remove_foca_cache
from foca_dit.adapters.published import PUBLISHED
from foca_dit.schedules import Adaptive

from . import models
from .models import Workload
from .run import Run, why

STREAMS = ("flux.1-dev", "dit-xl/2-256", "dit-xl/2-512", "wan2.1-14b", "hunyuan-video")


def commit_part(run: Run) -> None:
    for name in STREAMS[:2]:
        statistics_rows(run, name)
    for name in ("flux.1-dev", "dit-xl/2-256"):
        hidden_rows(run, name)
    for name in STREAMS[2:]:
        statistics_rows(run, name)


# Statistics --------------------------------------------------------------------------------------


def statistics_rows(run: Run, name: str) -> None:
    """The same commit with 0, 1 and 2 reduced rows, and the same in separate passes."""
    shape = (2, 16, 32) if run.tiny else models.stream(name, PUBLISHED[name].request)
    for n_stats in (0, 2, 1):
        what = f"commit R={n_stats}, {name}"
        if not run.budget.allows(run.results, what, 10 if run.on_gpu else 0):
            return
        case = cases.commit_case(n_stats, shape, run.device)
        case.leave_out("eager-float32", *(["compile"] if run.tiny or n_stats == 1 else []))
        if n_stats:
            for provider, kernel in cases.kernels_of("commit_", run.device).items():
                case.providers[f"{provider} + passes"] = separately(kernel, n_stats, plain_norms)
            if not run.tiny:
                fast = cases.compiled(plain_norms)
                kernel = next(iter(cases.kernels_of("commit_", run.device).values()))
                case.providers["kernel + compiled pass"] = separately(kernel, n_stats, fast)
        print(f"\n{what}")
        try:
            rows = run_case(case, run.device, run.results, run.rounds, cold=run.on_gpu, model=name)
            print(table(rows))
        except torch.cuda.OutOfMemoryError:
            run.results.left_out(what, "out of memory")
        del case
        run.release()
    if not run.tiny and name.startswith("dit"):
        return
    for n_stats in (0, 2):
        case = lists.commit_list_case(2 if run.tiny else 4, shape, run.device, n_stats=n_stats)
        if run.budget.allows(run.results, f"{case.name}, {name}", 10 if run.on_gpu else 0):
            try:
                cold = run.on_gpu
                print(table(run_case(case, run.device, run.results, run.rounds, cold, model=name)))
            except torch.cuda.OutOfMemoryError:
                run.results.left_out(case.name, "out of memory")
        run.release()


def plain_norms(columns: Sequence[Tensor], rows: Tensor, stats: Tensor) -> None:
    """The reduced rows as passes of their own, over the columns before they are replaced."""
    sums = [plain.float32_sum(columns, weights).square().sum() for weights in rows]
    stats.copy_(torch.stack(sums))


def separately(
    kernel: Callable[..., None], n_stats: int, norms: Callable[..., None]
) -> cases.Provider:
    def bind(i: cases.Inputs) -> Call:
        rows = i["transition"][-n_stats:].contiguous()
        without = i["transition"][:-n_stats].contiguous()

        def run() -> None:
            norms([*i["history"], i["feature"]], rows, i["stats"])
            kernel(i["feature"], i["history"], without, None)

        return run

    return bind


# Hiding ------------------------------------------------------------------------------------------


def hidden_rows(run: Run, name: str) -> None:
    """How much of a full step's commits hides when they are issued on a stream of their own.

    Three times of one full step: without a cache; with its commits in line, as the cache issues
    them; and with the commits on a second stream, which waits for each feature and is waited for at
    the end of the step. Hidden is 1 - (overlapped - without) / (in line - without): 0 says that a
    commit costs as much on the second stream, 1 that it costs nothing there.
    """
    what = f"commits beside a full step, {name}"
    if not run.budget.allows(run.results, what, 60 if run.on_gpu else 0):
        return
    try:
        workload = models.build(name, run.device, run.tiny)
        repeats = 5 if run.on_gpu else 2
        times = {"without": run.ms(lambda: workload.call(workload.sample, 0.5), repeats, warm=2)}
        for stats in (False, True):
            for granularity in ("module", "stack"):
                with full_steps_only(workload, granularity, stats) as step:
                    for _ in range(3):
                        step()
                    times["in line"] = run.ms(step, repeats)
                    times.pop("overlapped", None)
                    if run.on_gpu and not stats:  # the host reads statistics at once: no overlap
                        with on_second_stream() as joined:
                            times["overlapped"] = run.ms(lambda: joined(step), repeats, warm=2)
                _hidden_row(run, workload, granularity, stats, times)
    except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
        run.results.left_out(what, why(error))
    run.release()


def _hidden_row(
    run: Run, workload: Workload, granularity: str, stats: bool, times: dict[str, float]
) -> None:
    cost = times["in line"] - times["without"]
    for way, ms in times.items():
        more: dict[str, Any] = {"granularity": granularity, "statistics": stats}
        if way == "overlapped" and cost > 0:
            more["hidden"] = 1 - (ms - times["without"]) / cost
        dtype = str(run.dtype).removeprefix("torch.")
        run.results.measured(
            "full step with commits", way, dtype, workload.sample.shape, ms,
            **models.of_shape(workload), **more,
        )  # fmt: skip
    shown = ", ".join(f"{way} {ms:.2f}" for way, ms in times.items())
    print(f"  {workload.name}, {granularity}, statistics {stats}: ms: {shown}")


@contextmanager
def full_steps_only(
    workload: Workload, granularity: str, stats: bool
) -> Iterator[Callable[[], Tensor]]:
    """A cache that computes every step: its commits and nothing else are on top of the model.

    With statistics: those that the adaptive interval measures, whose decision is then overruled.
    """
    steps = 1000
    schedule = Adaptive(tol=1e-9, tail=0) if stats else Interval(1)
    config = FoCaCacheConfig(preset="paper", granularity=granularity, schedule=schedule)
    apply_foca_cache(workload.model, config)
    count = iter(range(steps))
    try:
        yield lambda: workload.call(workload.sample, 1 - next(count) / steps)
    finally:
        with warnings.catch_warnings():  # that nothing was skipped is the point
            warnings.simplefilter("ignore", UserWarning)
            remove_foca_cache(workload.model)


@contextmanager
def on_second_stream() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Issues the cache's commits on a stream of their own; yields what joins it after a step."""
    side = torch.cuda.Stream()
    real = foca_dit.history._ops

    def commit_(feature: Tensor, slots: list[Tensor], transition: Tensor, sums: Any) -> None:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            real.commit_(feature, slots, transition, sums)
        feature.record_stream(side)  # its memory is not reused before the commit has read it

    def joined(step: Callable[[], Any]) -> None:
        step()
        torch.cuda.current_stream().wait_stream(side)

    operators = SimpleNamespace(
        commit_=commit_,
        forecast=real.forecast,
        forecast_residual_=real.forecast_residual_,
    )
    with patch.object(foca_dit.history, "_ops", operators):
        yield joined
