"""Parts `e2e-*`: denoising loops of whole models, uncached and under every cache, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from foca_dit import FullSteps, Interval, foca_cache_stats
from foca_dit.adapters.published import Request

from . import models, peers
from .models import Workload
from .run import Run, why

STEPS, TINY_STEPS = 50, 10
KINDS = {
    # the published model, requests in the order of their importance, intervals of the paper
    "flux": ("flux.1-dev", ({},), (5, 8, 7)),
    "dit": ("dit-xl/2-256", ({"batch": 2}, {"batch": 64}), (5, 3, 2)),
    "video": ("hunyuan-video", ({},), (7, 5)),
}
VIDEO_FRAMES = (129, 97, 65, 33, 17)


@dataclass(frozen=True)
class Method:
    """One way of generating.

    Attributes:
        full_steps: how many steps run in full.
        applied: puts it on a workload, and yields the one to call.
        granularity: ours only: what is cached.
    """

    name: str
    full_steps: int
    applied: Callable[[Workload], AbstractContextManager[Workload]]
    granularity: str = ""
    interval: int = 0


def end_to_end(run: Run, kind: str) -> None:
    """All methods on one model: eager at every interval, then compiled at the first one."""
    name, requests, intervals = KINDS[kind]
    steps = TINY_STEPS if run.tiny else STEPS
    intervals = intervals[:1] if run.tiny else intervals
    modes = ("eager",) if run.tiny or kind == "video" else ("eager", "compile")
    for mode in modes:
        for asked in requests:
            run.release()
            try:
                workload = _fitting(run, name, kind, asked, steps)
                _compare(run, workload, mode, steps, intervals)
            except torch.cuda.OutOfMemoryError as error:
                run.results.left_out(f"{name} {asked} {mode}", why(error))
            workload = None


def _fitting(run: Run, name: str, kind: str, asked: dict[str, int], steps: int) -> Workload:
    """The workload; a video of as many frames as the time of this part and the memory allow."""
    if kind != "video" or not run.on_gpu:
        return models.build(name, run.device, run.tiny, **asked)
    workload = models.build(name, run.device, frames=VIDEO_FRAMES[-1])
    seconds = run.ms(lambda w=workload: w.call(w.sample, 0.5), repeats=1) / 1e3
    longest = frames_in(run.budget.left, name, workload.request, seconds, steps)
    print(f"{seconds:.2f} s a step of {VIDEO_FRAMES[-1]} frames: {longest} frames fit the time")
    for frames in VIDEO_FRAMES[VIDEO_FRAMES.index(longest) :]:
        workload = None  # one model at a time
        run.release()
        workload = models.build(name, run.device, frames=frames)
        try:
            workload.call(workload.sample, 0.5)
        except torch.cuda.OutOfMemoryError:
            continue
        break
    return workload


def frames_in(left_s: float, name: str, request: Request, step_s: float, steps: int) -> int:
    """The longest video whose loops all fit, where a step of this request takes `step_s`."""

    def work(frames: int) -> int:  # a block: 24 D^2 operations a token, and 4 S D in attention
        _, tokens, width = models.stream(name, replace(request, frames=frames))
        return tokens * (6 * width + tokens)

    for frames in VIDEO_FRAMES:
        # The uncached run, and seven caches that run a fifth of its steps, each twice.
        if 4 * steps * step_s * work(frames) / work(request.frames) < left_s:
            return frames
    return VIDEO_FRAMES[-1]


def _compare(
    run: Run, workload: Workload, mode: str, steps: int, intervals: tuple[int, ...]
) -> None:
    print(f"\n{workload.name}, batch {len(workload.sample)}, {mode}: {workload.source}")
    call_ms = run.ms(lambda: workload.call(workload.sample, 0.5), repeats=2, warm=2)
    copy_gbs = run.copy_gbs(8 << 30)
    full_ms = 0.0
    for number, interval in enumerate(intervals if mode == "eager" else intervals[:1]):
        for method in methods(workload, steps, interval, with_full=number == 0):
            what = f"{workload.name} {method.name} N={interval} {mode}"
            runs = 1 if method.full_steps == steps else 2  # a cache is warmed by a whole generation
            if not run.budget.allows(
                run.results, what, 1.1e-3 * runs * method.full_steps * call_ms
            ):
                continue
            try:
                seen = _generation(run, workload, method, mode, steps)
            except torch.cuda.OutOfMemoryError:
                run.results.left_out(what, "out of memory")
                continue
            except Exception as error:  # one peer that fails does not cost the others
                run.results.left_out(what, why(error))
                continue
            if method.full_steps == steps:
                full_ms = seen["ms"]
            row = run.results.measured(
                "generation", method.name, str(run.dtype).removeprefix("torch."),
                workload.sample.shape, **models.of_shape(workload), mode=mode,
                copy_bandwidth_gbs=copy_gbs, **seen,
                **_columns(method, steps, seen, full_ms, copy_gbs),
            )  # fmt: skip
            print(_line(row))


def methods(
    workload: Workload, steps: int, interval: int, with_full: bool = True
) -> Iterator[Method]:
    """Uncached, ours, the installed ones: the latter at the same full steps, or the nearest."""
    full = Interval(interval, warmup=workload.warmup).full_steps(steps)
    if with_full:
        yield Method("full", steps, nullcontext)
    for granularity in ("stack", "module", "output"):
        graphs = (False, True) if workload.sample.is_cuda and granularity != "output" else (False,)
        for graph in graphs:
            name = f"foca {granularity}" + (", one graph" if graph else "")
            applied = partial(_foca, granularity=granularity, full=full, graph=graph)
            yield Method(name, len(full), applied, granularity, interval)
    if workload.source.startswith("plain"):
        return  # the installed caches know diffusers' classes only
    near, count = peers.nearest_taylorseer(len(full), workload.warmup, steps)
    for all_modules in (True, False):
        name = "diffusers TaylorSeer" + (", all modules" if all_modules else "")
        applied = partial(peers.taylorseer, interval=near, all_modules=all_modules)
        yield Method(name, count, applied, interval=interval)
    if peers.has_cache_dit():
        mask = [int(step in full) for step in range(steps)]
        for name in peers.CALIBRATORS:
            applied = partial(peers.cache_dit_calibrated, mask=mask, name=name)
            yield Method(name, len(full), applied, interval=interval)


@contextmanager
def _foca(workload: Workload, granularity: str, full: list[int], graph: bool) -> Iterator[Workload]:
    with workload.cached(granularity, FullSteps(full), cuda_graph=graph):
        yield workload


def _generation(
    run: Run, workload: Workload, method: Method, mode: str, steps: int
) -> dict[str, Any]:
    """One timed generation, after one that warms up and, in eager mode, counts.

    Returns:
        ms; peak_gb: peak memory, on a GPU; products: how many multiply-adds of the blocks' Linear
        layers ran in the generation; held_bytes and histories: of our cache.
    """
    with method.applied(workload) as applied, compiled_blocks(applied, mode):
        seen: dict[str, Any] = {"products": None, "peak_gb": None}
        if method.full_steps < steps or run.tiny:  # a long uncached run needs no such warm-up
            with counted_products(applied, mode == "eager") as count:
                applied.generate(steps)
            seen["products"] = count[0] or None
        else:
            applied.call(applied.sample, 0.5)
        if applied.context is not nullcontext:  # diffusers ends a generation in its pipelines
            applied.model._reset_stateful_cache()
        run.release_cached()
        if run.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        run.synchronize()
        started = time.perf_counter()
        result = applied.generate(steps)
        run.synchronize()
        seen["ms"] = 1e3 * (time.perf_counter() - started)
        if run.on_gpu:
            peak = torch.cuda.max_memory_allocated()
            if applied.model is not workload.model:  # a copy, made so as to leave the model alone
                peak -= sum(p.nbytes for p in applied.model.parameters())
            seen["peak_gb"] = peak / 1e9
        if not bool(result.isfinite().all()):
            raise RuntimeError("the generation is not finite")
        if method.granularity:
            stats = foca_cache_stats(applied.model)
            if stats["graph_refusals"]:
                raise RuntimeError("; ".join(stats["graph_refusals"]))
            seen |= {"held_bytes": stats["nbytes"], "histories": stats["features"]}
        return seen


@contextmanager
def counted_products(workload: Workload, wanted: bool = True) -> Iterator[list[int]]:
    """Counts the multiply-adds of the Linear layers inside blocks: what a cache really computes.

    By a hook on all modules there are: with one on a module that it caches, ours runs uncached.
    """
    count = [0]
    linears = {
        module
        for name, module in workload.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.split(".")[0].endswith("blocks")
    }

    def see(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module in linears:
            count[0] += args[0].numel() * module.weight.shape[0]

    handles = [register_module_forward_hook(see)] if wanted else []
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def compiled_blocks(workload: Workload, mode: str) -> Iterator[None]:
    """Compiles every block by itself, as diffusers' `compile_repeated_blocks` does."""
    if mode == "eager":
        yield
        return
    torch._dynamo.reset()
    names = ("transformer_blocks", "single_transformer_blocks", "blocks", "single_blocks")
    blocks = [block for name in names for block in getattr(workload.model, name, ())]
    for block in blocks:
        block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch._dynamo.reset()


def moved(held: int, histories: int, history_size: int = 3) -> tuple[int, int]:
    """Bytes of a skipped step's forecasts and of a full step's commits, by what a cache holds.

    A skip reads all that is held, and reads and writes the stream; a commit of FoCa after a gap
    reads that and the features, and writes it. Gates are left out: they are a thousandth of it.
    """
    slot = held // history_size  # one tensor of every history
    return held + 2 * slot // histories, 2 * held + slot


def _columns(
    method: Method, steps: int, seen: dict[str, Any], full_ms: float, copy_gbs: float
) -> dict[str, Any]:
    speedup = full_ms / seen["ms"] if full_ms else None
    columns: dict[str, Any] = {
        "steps": steps,
        "full_steps": method.full_steps,
        "interval": method.interval,
        "speedup": speedup,
        "ideal": steps / method.full_steps,
        "of_ideal": speedup and speedup * method.full_steps / steps,
    }
    if method.granularity in ("module", "stack") and full_ms:
        sizes = moved(seen["held_bytes"], seen["histories"])
        skip, commit = (1e-6 * nbytes / copy_gbs for nbytes in sizes)
        skipped = steps - method.full_steps
        allowed = method.full_steps * (full_ms / steps + commit) + skipped * skip
        columns["of_bytes"] = allowed / seen["ms"]
    return columns


def _line(row: dict[str, Any]) -> str:
    peak = "" if row["peak_gb"] is None else f", {row['peak_gb']:.1f} GB"
    speed = "" if row["speedup"] is None else f"{row['speedup']:.2f}x of {row['ideal']:.2f}x"
    of = "" if row["of_ideal"] is None else f" ({row['of_ideal']:.0%})"
    return f"  {row['provider']:<36}N={row['interval']:<3}{row['ms']:>10.1f} ms  {speed}{of}{peak}"
