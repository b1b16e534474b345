"""Counts of what a cache did, so that nothing happens silently."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class CacheStats:
    """What has happened since the cache was applied, or the state made; `reset` keeps it.

    Attributes:
        full_steps: calls in which every feature was computed.
        skipped_steps: calls in which every feature was forecast.
        mixed_steps: calls in which some were computed and some forecast (masks, module by module).
        commits: features folded into their history.
        forecasts: features forecast.
        collapsed_skips: skipped steps in which no block ran: one launch added all forecasts.
        bypasses: calls that ran uncached, with the reason.
        fallbacks: calls computed in full although the schedule asked for less, with the reason.
        restarts: generations that started anew, with the reason.
        host_reads: reads of a full step's defect by an adaptive schedule.
        nonfinite_defects: of those, how many were not finite, so that the shortest gap followed.
        schedule: the full steps of the latest generation under an adaptive schedule; replay them
            with `FullSteps(stats["schedule"])`.
        predicted_errors: for each of them, the error that the skipped steps after it were predicted
            to add to the final sample, in the unit of the tolerance; NaN: no prediction.
    """

    full_steps: int = 0
    skipped_steps: int = 0
    mixed_steps: int = 0
    commits: int = 0
    forecasts: int = 0
    collapsed_skips: int = 0
    bypasses: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    restarts: Counter[str] = field(default_factory=Counter)
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

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and dicts, ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            k: dict(v) if isinstance(v, Counter) else list(v) if isinstance(v, list) else v
            for k, v in values.items()
        }
