"""One call under torch.profiler, reduced to what matters: launches, gaps, host time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MAX_SPANS = 400  # kept for the plot


def trace(call: Callable[[], object], device: str) -> dict[str, Any]:
    """What one call does, after two that warm up.

    Returns:
        launches: kernels and copies on the device; on a CPU the operators that call no others;
        None where the profiler sees nothing of the device.
        span_us: from the first launch's begin to the last one's end; busy_us: of it, at work;
        gaps_us: of it, idle. host_us: until the call returns, measured without the profiler.
        by_name: (name, how many, microseconds in sum) of the launches, the longest first.
        spans: (begin, duration, name) of each, in microseconds.
        issued: by name, how many calls of CUDA's started them: a graph is one.
    """
    on_gpu = device != "cpu"
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    for _ in range(2):
        call()
    synchronize()
    started = time.perf_counter()
    call()
    host = 1e6 * (time.perf_counter() - started)
    synchronize()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiled:
        call()
        synchronize()
    spans = []
    for event in profiled.events():
        if on_gpu:
            counts = event.device_type == DeviceType.CUDA
        else:
            counts = not event.cpu_children and event.name.startswith(("aten::", "foca::"))
        if counts:
            begin, end = event.time_range.start, event.time_range.end
            spans.append((float(begin), float(end), event.name))
    issued = Counter(
        event.name
        for event in profiled.events()
        if event.name.startswith("cu") and ("Launch" in event.name or "Memcpy" in event.name)
    )
    return summary(spans) | {"host_us": host, "issued": dict(issued)}


def summary(spans: list[tuple[float, float, str]]) -> dict[str, Any]:
    """Launches, busy and idle time of (begin, end, name), in microseconds."""
    spans = sorted(spans)
    first, reached, busy = (spans[0][0], spans[0][0], 0.0) if spans else (0.0, 0.0, 0.0)
    count: Counter[str] = Counter()
    took: Counter[str] = Counter()
    for begin, end, name in spans:
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
        count[name] += 1
        took[name] += end - begin
    return {
        "launches": len(spans) or None,
        "span_us": reached - first,
        "busy_us": busy,
        "gaps_us": reached - first - busy,
        "by_name": [(short(name), count[name], us) for name, us in took.most_common()],
        "spans": [(b - first, e - b, short(name)) for b, e, name in spans[:MAX_SPANS]],
    }


def short(name: str) -> str:
    """A kernel's name without its template arguments."""
    name = name.removeprefix("void ").split("<")[0].split("(")[0]
    return name.rsplit("::", 1)[-1] if "anonymous" in name else name[:60]
