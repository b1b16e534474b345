"""The loop that a pipeline's scheduler is set to, in the timesteps that the model is called with.

Many pipelines round a timestep to the model's dtype before they pass it on. In bfloat16 the first
steps of a shifted schedule then stand at one and the same number (1000, 996, 996, 992, ..), and
their places in log-SNR are wrong by half a gap. The scheduler knows which step it is at.
"""

from __future__ import annotations

from typing import Any

import torch

from foca_dit.clock import NoiseLevels

HALF = (torch.bfloat16, torch.float16)


class Timetable:
    """The timesteps of the loop that the scheduler is set to.

    Args:
        levels: knows the scheduler, and what the model's timesteps are to it.
    """

    def __init__(self, levels: NoiseLevels) -> None:
        self.levels = levels
        self._read: Any = None
        self._steps: tuple[float, ...] = ()

    @property
    def loop(self) -> Any:
        """What tells one loop from another: the scheduler's table, which `set_timesteps` replaces.

        None if there is no scheduler, or one that makes its table anew whenever it is asked.
        """
        table = self.levels.table
        return table if table is self.levels.table else None

    @property
    def steps(self) -> tuple[float, ...]:
        """The model's timesteps, none if they are not known. A host read once per loop."""
        loop = self.loop
        if loop is not self._read:
            self._steps = self.levels.planned() or ()
            self._read = loop
        return self._steps

    @property
    def place(self) -> int | None:
        """Which step of the loop the scheduler stands at; None if that is not known."""
        return None if self.loop is None else self.levels.step_index

    def stands_at(self, timestep: float) -> bool:
        """Whether the scheduler is at this step now: it is the one that leads the loop."""
        at = self.place
        return at is not None and self.steps[at : at + 1] == (timestep,)

    def after(self, before: float, timestep: float) -> tuple[float, ...]:
        """The loop from a timestep on, if it follows that one; else this loop is not the one."""
        if timestep not in self.steps:
            return ()
        here = self.steps.index(timestep)
        return self.steps[here:] if self.steps[max(here - 1, 0)] == before else ()

    def exact(self, timestep: float, dtype: torch.dtype | None) -> float:
        """The scheduler's own value of a timestep that was rounded on its way to the model.

        Args:
            timestep: what the model was called with.
            dtype: of the tensor that it came in; None: a number.

        Returns:
            The timestep of the step that the scheduler stands at, if that one is this number after
            rounding; else the timestep itself.
        """
        at = self.place
        if dtype not in HALF or at is None or not 0 <= at < len(self.steps):
            return timestep
        step = self.steps[at]
        return step if timestep in _rounded(step, self.levels.timestep_scale, dtype) else timestep


def _rounded(step: float, scale: float, dtype: torch.dtype) -> tuple[float, float]:
    """A timestep rounded as it is, and rounded before and after a division by 1000 (FLUX)."""
    once = torch.tensor(step).to(dtype)
    whole = torch.tensor(step * 1000 / scale).to(dtype)
    return float(once), float(whole / (1000 / scale))
