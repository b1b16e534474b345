"""What the benchmarks share: where a number comes from, how it is timed, how it is kept.

On a busy machine run with OMP_WAIT_POLICY=PASSIVE: spinning OpenMP threads turn a millisecond into
eight there.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]

RESULTS = Path(__file__).with_name("results")

# Buffers are rotated until a round touches this much: five times the L2 cache of an H200 (50 MB),
# and more than the last-level caches of most processors. Every call then finds its data cold.
COLD_BYTES = 256 << 20

# A queue holds about a thousand launches, and eager PyTorch makes dozens in a call: when it is
# full, the host waits for the device and would be timed with it.
QUEUED_CALLS = 8
GPU_CLOCK_HZ = 2e9  # only sets how long a spinning kernel holds the queue back
# What is timed between two events takes this long, or QUEUED_CALLS calls: what launch and event
# take, and what the call before left to be written out of the caches, are microseconds.
TIMED_S = 2e-3
WARM_UP_S = 0.05  # for an idle GPU's clock to rise


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment(device: str = "cpu") -> dict[str, Any]:
    """What every row of results is marked with: device, versions, commit, date."""
    cuda = torch.device(device).type == "cuda"
    driver = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "driver": _output_of(*driver) if cuda else "none",
        "commit": os.environ.get("FOCA_COMMIT")
        or _output_of("git", "rev-parse", "--short", "HEAD"),
        "date": datetime.date.today().isoformat(),
    }


class Results:
    """Rows that are on disk as soon as they are measured: a run that is cut off loses nothing."""

    def __init__(self, path: Path | None, device: str) -> None:
        self.path = path
        self.common = environment(device)
        self.rows: list[dict[str, Any]] = []

    def measured(
        self,
        case: str,
        provider: str,
        dtype: str,
        shape: Sequence[int],
        ms: float,
        nbytes: int | None = None,
        copy_gbs: float | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Adds one measurement with the columns that all have, and returns it.

        Args:
            case: what was done; `provider`: by whom.
            ms: how long it took.
            nbytes: what had to move, where bytes are what it is about; GB/s count these.
            copy_gbs: GB/s of a copy of as many bytes, measured in the same run.
        """
        row = {
            "case": case,
            "provider": provider,
            "dtype": dtype,
            "shape": list(shape),
            "ms": ms,
            "gbs": nbytes / ms / 1e6 if nbytes and ms else None,
            "copy_gbs": copy_gbs,
            "bytes": nbytes,
            **more,
        }
        self.add(**row)
        return {**row, **self.common}

    def left_out(self, case: str, why: str) -> None:
        """Notes what was not measured, and says so."""
        print(f"  left out: {case}: {why}")
        self.add(case=case, left_out=why)

    def add(self, **row: Any) -> None:
        self.rows.append({**row, **self.common})
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.rows, indent=1) + "\n")
        part.replace(self.path)


class Budget:
    """The seconds that a part of a run may take.

    Its rows are measured in the order of their importance, so what no longer fits is the least
    important; every one that is dropped is noted in the results.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = time.perf_counter()

    @property
    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self._started)

    def allows(self, results: Results, case: str, seconds: float = 0.0) -> bool:
        """Whether something that takes about this long still fits; if not, that is noted."""
        if self.left > seconds:
            return True
        results.left_out(case, f"no time left in this part ({self.seconds:.0f} s)")
        return False


def rotations(nbytes: int) -> int:
    """How many sets of buffers make the data cold."""
    return max(1, min(64, math.ceil(COLD_BYTES / max(nbytes, 1))))


def _cpu_ms(calls: Sequence[Call]) -> float:
    calls[-1]()  # not timed: it finds the C library's memory as whatever ran before left it
    started = time.perf_counter()
    for call in calls:
        call()
    return 1e3 * (time.perf_counter() - started) / len(calls)


def _cuda_ms(calls: Sequence[Call], hold_s: float) -> float:
    """Time on the device alone: the queue is held back until some calls are in it.

    Args:
        calls: what is timed, one after the other.
        hold_s: how long it takes to queue all of them.
    """
    total = 0.0
    for first in range(0, len(calls), QUEUED_CALLS):
        queued = calls[first : first + QUEUED_CALLS]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int((hold_s * len(queued) / len(calls) + 1e-4) * GPU_CLOCK_HZ))
        start.record()
        for call in queued:
            call()
        end.record()
        end.synchronize()
        total += float(start.elapsed_time(end))
    return total / len(calls)


def time_in_turn(runs: dict[str, Sequence[Call]], device: str, rounds: int) -> dict[str, float]:
    """Milliseconds per call of each run, one round of each after the other.

    Args:
        runs: By name, one call for each set of rotated buffers.
        device: On the CPU the result is the best round, since other processes only ever add time;
            on CUDA it is the median of times taken by events on the device.
        rounds: How often each run is timed.
    """
    cuda = torch.device(device).type == "cuda"
    hold, chosen = {}, dict(runs)
    for calls in runs.values():  # compiles and fills caches
        _cpu_ms(calls)
    until = time.perf_counter() + WARM_UP_S
    while cuda and time.perf_counter() < until:
        _host_and_device_s(next(iter(runs.values())))
    for name, calls in runs.items() if cuda else ():
        queued, done = _host_and_device_s(calls)
        chosen[name] = repeated(calls, done)
        hold[name] = min(0.5, 1.5 * queued * len(chosen[name]) / len(calls))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, calls in chosen.items():
            times[name].append(_cuda_ms(calls, hold[name]) if cuda else _cpu_ms(calls))
    pick = statistics.median if cuda else min
    return {name: float(pick(values)) for name, values in times.items()}


def _host_and_device_s(calls: Sequence[Call]) -> tuple[float, float]:
    """Seconds until all calls are queued, and until they are done."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for call in calls:
        call()
    queued = time.perf_counter() - started
    torch.cuda.synchronize()
    return queued, time.perf_counter() - started


def repeated(calls: Sequence[Call], seconds: float) -> list[Call]:
    """The calls, which take so many seconds, as often as it takes to time them well.

    Their data stays cold: the fewer the sets of buffers, the more of the caches each fills.
    """
    times = min(QUEUED_CALLS / len(calls), TIMED_S / max(seconds, 1e-9))
    return [*calls] * max(1, math.ceil(times))


# A copy of more than this is no faster than one of this; its buffers would only crowd out others.
MAX_COPY_BYTES = 16 << 30


def copy_calls(nbytes: int, device: str, n_sets: int) -> list[Call]:
    """Device copies that move ``nbytes`` each, half read and half written: the yardstick."""
    n = max(1, nbytes // 4)
    # Not of ones: memory may move constants faster than what models hold.
    sets = [torch.randn(2, n, dtype=torch.bfloat16, device=device) for _ in range(n_sets)]
    return [lambda s=s: s[1].copy_(s[0]) for s in sets]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of one case, as text."""
    width = max([16, *(len(row["provider"]) + 2 for row in rows)])
    lines = [f"{'provider':<{width}}{'ms':>10}{'GB/s':>9}{'of a copy':>11}"]
    for row in rows:
        share = row["gbs"] / row["copy_gbs"]
        lines.append(
            f"{row['provider']:<{width}}{row['ms']:>10.4f}{row['gbs']:>9.1f}{share:>11.0%}"
        )
    return "\n".join(lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of a page."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
