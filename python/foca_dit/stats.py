"""Counts of what a cache did, so that nothing happens silently."""

from __future__ import annotations

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

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and dicts, ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in values.items()}
