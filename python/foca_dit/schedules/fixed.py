"""Schedules that are known before anything runs: an interval, a list, a mask."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from foca_dit.files import read_json, write_whole
from foca_dit.schedules.base import NEVER, Schedule
from foca_dit.schemes.base import fault, require_int


@dataclass(frozen=True)
class Interval(Schedule):
    """The first `warmup` steps, then every `interval`-th: 0, 1, 2, 7, 12, .. for (5, 3).

    Args:
        interval: N; N - 1 steps are skipped between full ones. 1: no step is skipped.
        warmup: W, the number of full steps at the start, at least 1.
        tail: From this step on every step is full; None: no such step.
    """

    interval: int
    warmup: int = 3
    tail: int | None = None

    def __post_init__(self) -> None:
        require_int("Interval", "interval", self.interval, 1)
        require_int("Interval", "warmup", self.warmup, 1)
        if self.tail is not None:
            require_int("Interval", "tail", self.tail, 0)

    def next_full(self, anchors: Sequence[int], feature: int = 0) -> int:
        if not anchors:
            return 0
        due = anchors[-1] + (1 if len(anchors) < self.warmup else self.interval)
        if self.tail is not None and due > self.tail:
            due = max(self.tail, anchors[-1] + 1)
        return due


@dataclass(frozen=True)
class FullSteps(Schedule):
    """A fixed list of full steps.

    Args:
        steps: Strictly increasing, starting with 0.
    """

    steps: Sequence[int]

    def __post_init__(self) -> None:
        steps = tuple(
            require_int("FullSteps", f"steps[{i}]", s, 0) for i, s in enumerate(self.steps)
        )
        if steps[:1] != (0,) or any(b <= a for a, b in pairwise(steps)):
            expected = "strictly increasing steps that start with 0"
            raise ValueError(fault("FullSteps", "steps", expected, steps))
        object.__setattr__(self, "steps", steps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the list as JSON, `{"full_steps": [..]}`: whole or not at all."""
        write_whole(path, json.dumps({"full_steps": list(self.steps)}) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FullSteps:
        """Reads what `save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no such list.
        """
        data = read_json(path)
        if not isinstance(data, dict) or not isinstance(data.get("full_steps"), list):
            expected = 'a JSON file {"full_steps": [..]}'
            raise ValueError(fault("FullSteps.load", "path", expected, str(path)))
        return cls(data["full_steps"])

    def next_full(self, anchors: Sequence[int], feature: int = 0) -> int:
        return _first_after(self.steps, anchors)


@dataclass(frozen=True, eq=False)
class StepMask(Schedule):
    """A table that says for every step and feature whether it is computed.

    Args:
        mask: Boolean [S, L], S steps and L features; its first row must be all True. Steps
            beyond S are never full.
    """

    mask: ArrayLike
    _steps: tuple[tuple[int, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        mask = np.array(self.mask)  # a copy of our own
        if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
            expected = "a non-empty boolean table [steps, features]"
            raise ValueError(
                fault("StepMask", "mask", expected, f"{mask.dtype} of shape {list(mask.shape)}")
            )
        if not mask[0].all():
            missing = int(np.argmin(mask[0]))
            raise ValueError(
                fault("StepMask", "mask", "a first row of True", f"False for feature {missing}")
            )
        mask.flags.writeable = False
        object.__setattr__(self, "mask", mask)
        columns = tuple(tuple(int(s) for s in np.flatnonzero(column)) for column in mask.T)
        object.__setattr__(self, "_steps", columns)

    def check(self, function: str, features: int, granularity: str) -> None:
        """Checks that the mask has a column for each feature.

        Raises:
            ValueError: it has more or fewer; the message begins with `function`.
        """
        if features != len(self._steps):
            raise ValueError(
                f"{function}: argument 'config': expected a mask over the {features} features of "
                f"granularity {granularity!r}, got one over {len(self._steps)}"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StepMask) and self._steps == other._steps

    def __hash__(self) -> int:
        return hash(self._steps)

    def next_full(self, anchors: Sequence[int], feature: int = 0) -> int:
        require_int("StepMask", "feature", feature, 0, len(self._steps) - 1)
        return _first_after(self._steps[feature], anchors)


def _first_after(steps: Sequence[int], anchors: Sequence[int]) -> int:
    last = anchors[-1] if anchors else -1
    return next((step for step in steps if step > last), NEVER)
