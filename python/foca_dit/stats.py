"""Counts of what a cache did, so that nothing happens silently."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from foca_dit import reasons
from foca_dit.trajectory import turns_back


@dataclass
class CacheStats:
    """What has happened since the cache was applied, or the state made; `reset` keeps it.

    Counting is not atomic: every thread has a `CacheStats` of its own, and `add` sums them.

    Attributes:
        full_steps: calls in which every feature was computed.
        skipped_steps: calls in which every feature was forecast.
        mixed_steps: calls in which some were computed and some forecast (masks, module by module).
        commits: features folded into their history.
        forecasts: features forecast.
        collapsed_skips: skipped steps in which no block ran: one launch added all forecasts.
        graph_replays: skipped steps that were a replay of one captured graph (`cuda_graph`).
        graph_refusals: skipped steps that were not, although asked for, with the reason.
        bypasses: calls that ran uncached, with the reason.
        fallbacks: calls computed in full although the schedule asked for less, with the reason.
        restarts: generations that started anew, with the reason.
        time_fallbacks: guidance branches of generations that were forecast in step indices,
            although the configuration names another time variable, with the reason.
        host_reads: reads of a full step's defect by an adaptive schedule.
        nonfinite_defects: of those, how many were not finite, so that the shortest gap followed.
        schedule: the full steps of this thread's latest generation under an adaptive schedule;
            replay them with `FullSteps(stats["schedule"])`.
        predicted_errors: for each of them, the error that the skipped steps after it were predicted
            to add to the final sample, in the unit of the tolerance; NaN: no prediction.
    """

    full_steps: int = 0
    skipped_steps: int = 0
    mixed_steps: int = 0
    commits: int = 0
    forecasts: int = 0
    collapsed_skips: int = 0
    graph_replays: int = 0
    graph_refusals: Counter[str] = field(default_factory=Counter)
    bypasses: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    restarts: Counter[str] = field(default_factory=Counter)
    time_fallbacks: Counter[str] = field(default_factory=Counter)
    host_reads: int = 0
    nonfinite_defects: int = 0
    schedule: list[int] = field(default_factory=list)
    predicted_errors: list[float] = field(default_factory=list)

    def note(self, full_steps: tuple[int, ...], predicted: float) -> None:
        """Keeps the full steps of a generation so far, and what was predicted after the last."""
        before = self.predicted_errors if full_steps[:-1] == tuple(self.schedule) else []
        unknown = [math.nan] * (len(full_steps) - 1 - len(before))
        self.schedule = list(full_steps)
        self.predicted_errors = [*unknown, *before, predicted]

    def add(self, other: CacheStats) -> None:
        """Adds another's counts; the schedule and its predictions stay one's own."""
        for name in (f.name for f in fields(self)):
            mine = getattr(self, name)
            if not isinstance(mine, list):
                setattr(self, name, mine + getattr(other, name))

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and dicts, ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            k: dict(v) if isinstance(v, Counter) else list(v) if isinstance(v, list) else v
            for k, v in values.items()
        }


class Generation:
    """Watches whether the generation in progress skips anything, to say so if it does not.

    Args:
        stats: the counts that the generation adds to.
    """

    def __init__(self, stats: CacheStats) -> None:
        self._stats = stats
        self._timesteps: list[float] = []
        self._skipped = stats.skipped_steps + stats.mixed_steps
        self._restarts = stats.restarts.copy()
        self._fallbacks = stats.fallbacks.copy()

    def is_over(self, timestep: float) -> bool:
        """Whether a call at this timestep begins another generation: the loop turns back."""
        return turns_back(self._timesteps, timestep)

    def see(self, timestep: float) -> None:
        """Counts a call."""
        if not self._timesteps or timestep != self._timesteps[-1]:
            self._timesteps.append(timestep)

    def why_nothing_was_skipped(self, adaptive: bool) -> str | None:
        """The reason, or None if something was, or if there were not two steps."""
        stats, steps = self._stats, len(self._timesteps)
        if steps < 2 or stats.skipped_steps + stats.mixed_steps > self._skipped:
            return None
        for counts, before in (
            (stats.fallbacks, self._fallbacks),
            (stats.restarts, self._restarts),
        ):
            for reason, times in (counts - before).most_common():
                if reason not in (reasons.TURNED_BACK, reasons.SET_ANEW):
                    return f"{reason} ({times} times in {steps} steps)"
        if adaptive:
            return f"none of its {steps} steps was predicted to stay within the tolerance"
        return f"the schedule computes each of its {steps} steps"
