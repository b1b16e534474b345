"""One guidance branch of one request: the step it is at, and what its scheduler says comes next."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from foca_dit.ahead import Ahead
from foca_dit.clock import Clock
from foca_dit.graphs import SkippedSteps
from foca_dit.history import FeatureHistories
from foca_dit.schedules import Outlook
from foca_dit.schedules.sampler import continuation, look_ahead
from foca_dit.timetable import Timetable
from foca_dit.trajectory import Trajectory


class Branch:
    """One guidance branch of one request: where it is, and the histories of its features.

    A call of the model is `enter` .. `leave`; a call that raises in between is never left, and the
    next one then computes everything anew (or simply goes on, if it repeats the same step).
    """

    def __init__(
        self,
        trajectory: Trajectory,
        histories: FeatureHistories,
        timetable: Timetable,
        pace: Clock,
        timed: bool = True,
    ) -> None:
        self.trajectory = trajectory
        self._pace = pace  # the clock that an adaptive schedule measures distances by
        self.timed = timed  # by noise levels; else by step indices
        self.histories = histories
        self.skipped = SkippedSteps()
        self.ahead = Ahead()
        self._timetable = timetable
        self.loop = timetable.loop  # that it began in
        self._entered = -1
        self._finished = -1
        self._place: int | None = None  # of the scheduler, at the last call
        self._planned: tuple[float, ...] | None = None

    def enter(
        self,
        timestep: float,
        sample: torch.Tensor,
        conditions: Sequence[torch.Tensor] = (),
        compute_all: bool = False,
    ) -> FeatureHistories:
        """Opens the step that this call belongs to."""
        interrupted = self.is_interrupted
        step = self.trajectory.advance(timestep, sample, conditions)
        self.histories.begin(
            step,
            self.trajectory.tau,
            compute_all=compute_all or (interrupted and step != self._entered),
        )
        self._entered = step
        self._place = self._timetable.place
        return self.histories

    @property
    def is_interrupted(self) -> bool:
        """Whether its last call did not return."""
        return self._entered > self._finished

    @property
    def has_begun(self) -> bool:
        """Whether its first step returned."""
        return self._finished >= 0

    def repeats(self, timestep: float) -> bool:
        """Whether this is the timestep of the last step, although that step returned."""
        return not self.is_interrupted and self.trajectory.timesteps[-1] == timestep

    @property
    def stands_still(self) -> bool:
        """Whether the scheduler leads this loop, and made no step since the last call."""
        table, timestep = self._timetable, self.trajectory.timesteps[-1]
        return table.stands_at(timestep) and table.place == self._place

    def leave(self) -> None:
        """Closes the step: the call returned."""
        self._finished = self._entered

    def is_next(self, timestep: float) -> bool:
        """Whether the scheduler's loop that this branch began in has this timestep next.

        Then it is the same generation, however far a stochastic or coarse sampler jumped.
        """
        steps = self._scheduled()
        return continuation([*self.trajectory.timesteps, timestep], steps) is not None

    def is_evaluated_twice(self, timestep: float) -> bool:
        """Whether that loop stands twice at this timestep, each time with another sample (Heun)."""
        steps = self._scheduled()
        return steps.count(min(steps, key=lambda t: abs(t - timestep), default=0.0)) > 1

    @property
    def upcoming(self) -> Sequence[float]:
        """Timesteps of the open step and of those that follow it up to the next full one."""
        *_, before, now = (math.nan, *self.trajectory.timesteps)
        steps = self._timetable.after(before, now) if self.loop is self._timetable.loop else ()
        return steps[: self.histories.steps_to_full] or (now,)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.histories.nbytes + self.ahead.nbytes

    def _scheduled(self) -> tuple[float, ...]:
        """The timesteps of the loop that this branch began in; none if it is not known or over."""
        return self._timetable.steps if self.loop is self._timetable.loop else ()

    def look_ahead(self, timesteps: Sequence[float] | None) -> Outlook:
        """All steps of this generation, as far as `timesteps`, or else the scheduler, tells."""
        if self._planned is None:  # kept: the scheduler may be set anew for another request
            self._planned = tuple(timesteps or self._timetable.steps)
        path, levels = self.trajectory, self._timetable.levels
        return look_ahead(self._pace, levels, path.timesteps, self._planned or None)


class BranchCounter:
    """Names the branch of a call by its rank among the calls at one timestep."""

    def __init__(self) -> None:
        self._timestep: float | None = None
        self._calls = 0
        self._before = 0

    def name(self, timestep: float) -> str:
        return str(self._calls if timestep == self._timestep else 0)

    def lost_a_call(self, timestep: float) -> bool:
        """Whether the step that ends now had fewer calls than the one before it."""
        return timestep != self._timestep and self._calls < self._before

    def count(self, timestep: float) -> None:
        if timestep == self._timestep:
            self._calls += 1
        else:
            self._timestep, self._before, self._calls = timestep, self._calls, 1
