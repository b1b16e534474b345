"""The loop that a pipeline's scheduler is set to, in the timesteps that the model is called with.

Many pipelines round a timestep to the model's dtype before they pass it on. In bfloat16 the first
steps of a shifted schedule then stand at one and the same number (1000, 996, 996, 992, ..), and
their places in log-SNR are wrong by half a gap. The scheduler's table says which step was meant.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from foca_dit.clock import NoiseLevels

HALF_PRECISION = 2.0**-7
"""How far off, relatively, a number is that bfloat16 rounded twice: FLUX's before and after its
division by 1000. bfloat16 keeps 8 bits, so each time it may be 2^-8."""
SINGLE_PRECISION = 1e-6


def is_half(value: float) -> bool:
    """Whether a number may have been rounded to bfloat16 or float16."""
    single = struct.unpack("<I", struct.pack("<f", value))[0]
    return single & 0xFFFF == 0 or float(np.float16(value)) == value


def tolerance(timestep: float) -> float:
    """How far from the true one a timestep may be that a model was called with."""
    return (HALF_PRECISION if is_half(timestep) else 1e-5) * abs(timestep)


class Timetable:
    """The timesteps of the loop that the scheduler is set to. Every generation sets a new one.

    Args:
        levels: knows the scheduler, and what the model's timesteps are to it.
    """

    def __init__(self, levels: NoiseLevels) -> None:
        self.levels = levels
        self._read: Any = None
        self._steps: tuple[float, ...] = ()

    @property
    def loop(self) -> Any:
        """What tells one loop from another: an object that is replaced; None: no scheduler."""
        return self.levels.table

    @property
    def steps(self) -> tuple[float, ...]:
        """The model's timesteps, none if they are not known. A host read once per loop."""
        if self.loop is not self._read:
            self._read, self._steps = self.loop, self.levels.planned() or ()
        return self._steps

    def exact(
        self,
        timestep: float,
        last: float | None,
        others: float | None,
        is_repeated: Callable[[], bool],
    ) -> float:
        """The scheduler's own value of a timestep that may have been rounded.

        Args:
            timestep: what the model was called with.
            last: the exact timestep at which this guidance branch was called last; None: never.
            others: that at which any branch was called last.
            is_repeated: whether this call repeats the last one: a failed step, or another branch
                given the same sample. Asked only where two steps are meant by one number.

        Returns:
            One of `steps`, or the timestep itself where none is near or it was not rounded.
        """
        steps = self.steps if is_half(timestep) else ()
        limit = tolerance(timestep)
        near = [i for i, step in enumerate(steps) if abs(step - timestep) <= limit]
        if not near:
            return timestep
        nearest = min(near, key=lambda i: abs(steps[i] - timestep))
        at = None if last is None else self._index(last)
        unrounded = abs(steps[nearest] - timestep) <= SINGLE_PRECISION * abs(timestep)
        if at is None or (unrounded and nearest != at):
            return steps[nearest]
        with_others = None if others is None else self._index(others)
        if with_others in near and with_others is not None and with_others > at:
            return steps[with_others]
        if at + 1 in near and not (at in near and is_repeated()):
            return steps[at + 1]
        return steps[at] if at in near else steps[nearest]

    def _index(self, timestep: float) -> int | None:
        """Where an exact timestep stands, the last place if it stands at several."""
        return next(
            (i for i in reversed(range(len(self._steps))) if self._steps[i] == timestep), None
        )
