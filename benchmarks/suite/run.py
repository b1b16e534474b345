"""What every part of the suite is given: where to measure, how long, and where rows go."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from _measure import Budget, Results, copy_calls, time_in_turn

PART_SECONDS = 460  # each part within eight minutes, its start included


@dataclass
class Run:
    """One part of one run.

    Attributes:
        device: `cuda` or `cpu`.
        results: where rows go.
        budget: the seconds of this part.
        tiny: small shapes and few steps: tests the suite itself.
        rounds: how often a timing is repeated.
    """

    device: str
    results: Results
    budget: Budget
    tiny: bool = False
    rounds: int = 9

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """Of whole models."""
        return torch.bfloat16

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def free_bytes(self) -> int:
        """Device memory that can still be had."""
        if not self.on_gpu:
            return 2 << 30
        self.release()
        return int(torch.cuda.mem_get_info()[0])

    def release(self) -> None:
        """Gives back what the last case held, compiled graphs included."""
        torch._dynamo.reset()
        self.release_cached()

    def release_cached(self) -> None:
        """Gives back memory that nothing uses."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def copy_gbs(self, nbytes: int) -> float:
        """GB/s of a copy that moves this many bytes."""
        nbytes = min(nbytes, 8 << 30 if self.on_gpu else 16 << 20)
        ms = time_in_turn({"copy": copy_calls(nbytes, self.device, 1)}, self.device, self.rounds)
        return nbytes / ms["copy"] / 1e6

    def ms(self, call: Callable[[], object], repeats: int = 0, warm: int = 1) -> float:
        """Median milliseconds of a call that may be bound by the host: launches are not hidden."""
        for _ in range(warm):
            call()
        times = []
        for _ in range(repeats or self.rounds):
            self.synchronize()
            started = time.perf_counter()
            call()
            self.synchronize()
            times.append(1e3 * (time.perf_counter() - started))
        return statistics.median(times)


def results_file(folder: Path, results: Results, part: str) -> Path:
    """Where the rows of one part on one device go."""
    device = results.common["device"].lower().replace(" ", "-").replace("/", "-")
    return folder / f"gpu-{device}-{part}.json"


def why(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
