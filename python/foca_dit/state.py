"""`CacheState`: all that a cache remembers, for one request. Explicit, so that servers can hold
one per request and switch between them call by call.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from weakref import ReferenceType, ref

import torch

from foca_dit import reasons, times
from foca_dit.branch import Branch, BranchCounter
from foca_dit.clock import NoiseLevels, make_clock
from foca_dit.config import FoCaCacheConfig, Settings, checked
from foca_dit.family import Family
from foca_dit.history import FeatureHistories
from foca_dit.schedules import Decision
from foca_dit.stats import CacheStats, Generation
from foca_dit.timetable import Timetable
from foca_dit.trajectory import Trajectory

_BY_NOISE = ("sigma", "log_snr")  # time variables that are read off noise levels
MOST_BRANCHES = 16  # that are told apart by counting: a call repeated for ever must not fill memory


class CacheState:
    """The histories of one request, for all its guidance branches.

    Args:
        config: scheme, schedule, time variable and storage; must be the model's own (the one given
            to `apply_foca_cache`).
        restartable: what to do with a call that does not continue the one before. True (the state
            that `apply_foca_cache` makes): it starts a new generation. False (a state of your own,
            which belongs to one request): a step out of order is an error, and samples are not
            compared.

    The number of features, and what a timestep means, are taken from the model that the state is
    used with, at the first `cache_scope`.
    """

    def __init__(self, config: FoCaCacheConfig | None = None, restartable: bool = False) -> None:
        self.settings: Settings = checked(config, "CacheState").resolve()
        self.features: int | None = None
        self._model: ReferenceType[torch.nn.Module] | None = None
        self._granularity = ""
        self._given: NoiseLevels | None = None
        self.timetable = Timetable(NoiseLevels())
        self.stats = CacheStats()
        self._restartable = restartable
        self._branches: dict[str, Branch] = {}
        self._counter = BranchCounter()
        self._latest: tuple[float | None, float | None] = (None, None)
        self._decision: tuple[Trajectory, tuple[int, ...], Decision] | None = None
        self._uneven: float | None = None  # timestep of a step that began with fewer branches
        self._generation = Generation(self.stats)
        self._warned = self._misfit_said = False
        self._family = Family()

    def sibling(self) -> CacheState:
        """An empty state with the same settings and model, for another thread."""
        other = self.anew()
        self._family.take_in(other)
        return other

    def anew(self) -> CacheState:
        """An empty state with the same settings and model."""
        other = CacheState.__new__(CacheState)
        other.__dict__.update(self.__dict__)
        other.stats = CacheStats()
        other._generation, other._family = Generation(other.stats), Family()
        other._warned = other._misfit_said = False
        other._forget_all()
        return other

    @property
    def levels(self) -> NoiseLevels:
        """What a timestep of the model means."""
        return self.timetable.levels

    @levels.setter
    def levels(self, levels: NoiseLevels) -> None:
        if levels is not self.timetable.levels:
            self.timetable = Timetable(levels)

    @property
    def family(self) -> tuple[CacheState, ...]:
        """This state and those of the other threads that are alive."""
        return (self, *self._family.states)

    def departed(self) -> CacheStats:
        """The counts of the threads that are gone."""
        return self._family.departed()

    @property
    def nbytes(self) -> int:
        """Bytes held by all branches: by histories, and by gates of the next skipped steps."""
        return sum(branch.nbytes for branch in list(self._branches.values()))

    @property
    def branches(self) -> dict[str, Branch]:
        """The guidance branches seen so far, by name."""
        return dict(self._branches)

    def attach(
        self, model: torch.nn.Module, granularity: str, features: int, levels: NoiseLevels
    ) -> None:
        """Tells the state about the model it is used with.

        Raises:
            ValueError: it is in use with another one, or with other features of it.
        """
        known = None if self._model is None else self._model()
        if known is None:
            self._forget_all()  # nothing yet, or the histories of a model that is gone
        elif known is not model or (self._granularity, self.features) != (granularity, features):
            raise ValueError(
                f"CacheState: expected the model that it is in use with ({type(known).__name__}, "
                f"{self.features} features at {self._granularity}), got {type(model).__name__}, "
                f"{features} features at {granularity}: use a CacheState per request and model"
            )
        self._model, self._granularity, self.features = ref(model), granularity, features
        if levels is not self._given:  # else the state may have followed another scheduler since
            self._given = self.levels = levels

    def anew_for(self, model: torch.nn.Module) -> CacheState:
        """An empty state with the same settings, for a copy of the model."""
        other = self.anew()
        other._model = ref(model)
        return other

    def reset(self) -> None:
        """Ends the generation: forgets all histories and gives their memory back.

        The counts in `stats` stay. Warns, once, if the generation skipped nothing.
        """
        self._end_generation()
        self._forget_all()
        self._model = None  # the next request may be another model's

    def forget(self, branch: str | None) -> None:
        """Forgets a branch by name, or all where branches are not named: a call went uncached."""
        if branch is None:
            self._forget_all()
        else:
            self._branches.pop(branch, None)

    def _forget_all(self) -> None:
        self._branches = {}
        self._counter = BranchCounter()
        self._latest = (None, None)
        self._decision = self._uneven = None

    def _end_generation(self) -> None:
        why = self._generation.why_nothing_was_skipped(self.settings.schedule.uses_defects)
        if getattr(self.settings.schedule, "interval", None) == 1:
            why = None  # as asked for
        self._generation = Generation(self.stats)
        if why is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"foca_dit: a generation in which nothing was skipped: {why}. This is said once; "
                "foca_cache_stats(model) counts on",
                stacklevel=3,
            )

    def enter(
        self,
        timestep: float,
        sample: torch.Tensor,
        branch: str | None = None,
        dtype: torch.dtype | None = None,
        conditions: Sequence[torch.Tensor] = (),
    ) -> Branch:
        """Finds the branch and step of a call and opens it.

        Args:
            timestep: the model's timestep of this call.
            sample: the model's input, to tell whether the call continues the one before.
            branch: the guidance branch; None: told by counting the calls at one timestep.
            dtype: of the tensor that the timestep came in; None: it was a number.
            conditions: what is to be drawn; other values belong to another generation.

        Raises:
            RuntimeError: a step out of order in a state that belongs to one request.
        """
        if self._restartable and self._is_another_loop():
            self._end_generation()
            self.stats.restarts[reasons.SET_ANEW] += 1
            self._forget_all()
        timestep = self.timetable.exact(timestep, dtype)
        if self._generation.is_over(timestep):
            self._end_generation()
        opened = self._enter(timestep, sample, branch, conditions)
        self._generation.see(timestep)
        return opened

    def _is_another_loop(self) -> bool:
        """Whether the scheduler was set anew since the branches began: a generation is given up."""
        loop = self.timetable.loop
        return any(known.loop is not loop for known in self._branches.values())

    def _has_begun(self) -> bool:
        """Whether any call returned; if none did, this one may be another request's."""
        return any(known.has_begun for known in self._branches.values())

    def _enter(
        self,
        timestep: float,
        sample: torch.Tensor,
        branch: str | None,
        conditions: Sequence[torch.Tensor],
    ) -> Branch:
        name = self._counter.name(timestep) if branch is None else self._named(branch, timestep)
        breaks = self._breaks(name, timestep, sample, conditions, counted=branch is None)
        reason = next(breaks, None)
        if reason is not None:
            self._restart(reason, timestep, name, counted=branch is None)
            return self._enter(timestep, sample, branch, conditions)
        known = self._branches.get(name)
        if known is None:
            known = self._branches[name] = self._new_branch(timestep)
        # A generation begun anew at its first step looks like one more branch. A scheduler tells,
        # else only the number of calls at the second step: nothing is forecast before it is over.
        begins = self._restartable and branch is None and known.trajectory.step < 1
        unsure = begins and not self._goes_on(known, timestep)
        known.enter(timestep, sample, conditions, compute_all=unsure)
        if unsure and known.histories.is_computed_early:
            self.stats.fallbacks[reasons.SECOND_STEP] += 1
        if timestep != self._latest[-1]:
            self._latest = (self._latest[-1], timestep)
        return known

    def _breaks(
        self,
        name: str,
        timestep: float,
        sample: torch.Tensor,
        conditions: Sequence[torch.Tensor],
        counted: bool,
    ) -> Iterator[str]:
        """Why this call does not continue the branch of that name, the first reason first."""
        known = self._branches.get(name)
        if known is not None:
            reason = known.trajectory.break_with(timestep, sample, conditions)
            if reason and not (reason == reasons.DISCONTINUOUS and known.is_next(timestep)):
                yield reason
            if not counted and known.repeats(timestep) and not self._is_tried_again(known):
                yield reasons.FINISHED
            if not counted and self._missed_a_step(known, timestep):
                yield reasons.LEFT_OUT
            if known.timed and not self._is_timed(timestep):
                yield reasons.OFF_SCALE
            if self._restartable and not self._has_begun():
                yield reasons.NEVER_BEGUN
        if self._restartable and counted:
            yield from self._miscounted(name, timestep, sample, conditions)

    def leave(self, branch: Branch) -> None:
        """Closes a call that returned."""
        if branch.histories.undecided:
            self._decide(branch)  # may raise, and is then asked again when the call is repeated
        branch.leave()
        if branch.trajectory.timesteps[-1] == self._uneven:
            self._branches = {}
        self._counter.count(branch.trajectory.timesteps[-1])

    def _decide(self, branch: Branch) -> None:
        """Lets an adaptive schedule decide, once per step for all guidance branches."""
        anchors = branch.histories.decisive_anchors
        if self._decision is not None:
            trajectory, its_anchors, decision = self._decision
            same_step = trajectory.timesteps == branch.trajectory.timesteps
            if trajectory is not branch.trajectory and same_step and its_anchors == anchors:
                branch.histories.follow(decision)
                return
        timesteps = getattr(self.settings.schedule, "timesteps", None)
        outlook = branch.look_ahead(timesteps)
        if timesteps and outlook.assumed:
            self._say_misfit(timesteps, branch.trajectory)
        self._decision = branch.trajectory, anchors, branch.histories.decide(outlook)

    def _say_misfit(self, timesteps: Sequence[float], trajectory: Trajectory) -> None:
        """Warns, once, that the schedule's own timesteps are not those of the loop."""
        if self._misfit_said:
            return
        self._misfit_said = True
        warnings.warn(
            f"foca_dit: the schedule's argument 'timesteps': expected those of the loop, got "
            f"{_ends(timesteps)}, and calls at {_ends(trajectory.timesteps)}: the steps to come "
            "are assumed to continue like the last one. This is said once",
            RuntimeWarning,
            stacklevel=3,
        )

    def _named(self, branch: str, timestep: float) -> str:
        """The branch of a call that names one: a second evaluation has histories of its own."""
        known = self._branches.get(branch)
        if not self._restartable or known is None or not known.repeats(timestep):
            return branch
        return f"{branch}, second evaluation" if known.is_evaluated_twice(timestep) else branch

    def _goes_on(self, branch: Branch, timestep: float) -> bool:
        """Whether the scheduler has this timestep after the last one of the branch."""
        done = branch.trajectory.timesteps
        return bool(done) and bool(self.timetable.after(done[-1], timestep))

    def _is_tried_again(self, branch: Branch) -> bool:
        """Whether another branch of a request failed at this step, or before it came to it."""
        before = branch.trajectory.timesteps[-2:-1]
        return not self._restartable and any(
            other.is_interrupted or other.trajectory.timesteps[-1:] == before
            for other in self._branches.values()
        )

    def _missed_a_step(self, branch: Branch, timestep: float) -> bool:
        """Whether other branches went through a step that this one was not called at."""
        before, latest = self._latest
        previous = before if timestep == latest else latest
        return branch.trajectory.timesteps[-1] not in (previous, timestep)

    def _miscounted(
        self,
        name: str,
        timestep: float,
        sample: torch.Tensor,
        conditions: Sequence[torch.Tensor],
    ) -> Iterator[str]:
        """Why counting the calls at one timestep does not explain this call."""
        if self._counter.lost_a_call(timestep):
            # Guidance was switched off part-way, or a generation was given up at its first step and
            # begun anew at the same timestep, which looked like one more branch.
            yield reasons.FEWER_CALLS
        if name in self._branches:
            return
        if len(self._branches) >= MOST_BRANCHES:
            yield f"more than {MOST_BRANCHES} calls came with the same timestep"
        first = self._branches.get("0")
        if first is None or first.is_evaluated_twice(timestep):
            return
        # Guidance branches of one step are given one and the same sample, or (Cosmos) noise of
        # their own, and another prompt while the scheduler stands still.
        is_other = first.stands_still and not first.trajectory.keeps(conditions)
        if not first.trajectory.saw(sample) and not is_other:
            yield reasons.ANOTHER_SAMPLE
        # Guidance was switched on part-way, or a step is repeated: which call was which before?
        if first.trajectory.step > 0:
            yield reasons.MORE_CALLS

    def _restart(self, reason: str, timestep: float, name: str, counted: bool) -> None:
        if not self._restartable and reason in reasons.OUT_OF_ORDER:
            done = self._branches[name].trajectory
            latest = [round(t, 4) for t in done.timesteps[-2:]]
            raise RuntimeError(
                f"CacheState: timestep {timestep:g} of branch '{name}' is out of order: expected "
                f"one that continues {latest} (step {done.step}). A state belongs to one request: "
                "call state.reset() before a new one, or use a CacheState per request; two calls a "
                "step are two branches: cache_scope(model, state, branch=...)"
            )
        self.stats.restarts[reason] += 1
        if reason == reasons.MORE_CALLS:
            self._branches, self._decision = {}, None  # the calls of this step count on
            self._uneven = timestep
        elif counted:
            self._forget_all()
        else:
            del self._branches[name]

    def _is_timed(self, timestep: float) -> bool:
        """Whether all that reads noise levels off this timestep can."""
        read = self.settings.time in _BY_NOISE or self.settings.schedule.uses_defects
        return not read or self.levels.covers(timestep)

    def _new_branch(self, timestep: float) -> Branch:
        if self.features is None:
            raise RuntimeError(
                "CacheState: used before it knows its model: use it through "
                "cache_scope(model, state)"
            )
        timed, time = self._is_timed(timestep), self.settings.time
        if not timed:
            time = "step" if time in _BY_NOISE else time
            self.stats.time_fallbacks[reasons.UNTIMED.format(timestep, self.levels.largest)] += 1
        clock = make_clock(time, self.levels)
        if (origin := self.settings.scheme.origin) is not None:
            clock = origin.watched(clock)
        histories = FeatureHistories(self.settings, self.features, self.stats)
        pace = make_clock(times.paced(time), self.levels)
        return Branch(Trajectory(clock, self._restartable), histories, self.timetable, pace, timed)


def _ends(timesteps: Sequence[float]) -> str:
    """A list of timesteps, shortened to its ends."""
    shown = [f"{t:g}" for t in timesteps]
    return ", ".join(shown if len(shown) < 5 else [*shown[:2], "..", *shown[-2:]])
