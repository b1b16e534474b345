"""`plan_foca_cache`: what a cache will cost and save, said before anything is run.

Bytes, FLOPs and speedup only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from foca_dit.api import granularity_of, transformer_of
from foca_dit.config import FoCaCacheConfig, checked
from foca_dit.schedules import Outlook, Schedule, Situation, StepMask
from foca_dit.schemes.base import fault
from foca_dit.tuned import TunedPlan

if TYPE_CHECKING:
    from foca_dit.adapters.dry_run import Account
    from foca_dit.adapters.spec import ModelSpec

WORTH_IT = 1.2
"""A smaller ideal speedup is not worth a forecast's error."""
FEW_STEPS = 8
"""With no more steps the adaptive schedule wins nothing (docs/quality.md)."""


@dataclass(frozen=True)
class CacheEstimate:
    """What one configuration means for one model and call.

    Attributes:
        model: name of its class.
        steps: denoising steps of a generation.
        full_steps: how many of them are computed; None: an adaptive schedule decides as it runs.
        accounts: per granularity, what is held and multiplied.
        granularity: the one that the configuration chooses.
        branches: guidance branches that are separate calls: each has its own histories.
    """

    model: str
    steps: int
    full_steps: int | None
    accounts: tuple[Account, ...]
    granularity: str
    branches: int = 1

    @property
    def mixed_steps(self) -> int:
        """Steps in which some features are computed and some forecast."""
        return len(self.chosen.mixed_flops)

    @property
    def chosen(self) -> Account:
        """The account of the configured granularity."""
        return next(a for a in self.accounts if a.granularity == self.granularity)

    @property
    def nbytes(self) -> int:
        """Bytes that the histories will hold at the configured granularity."""
        return self.chosen.nbytes * self.branches

    @property
    def peak_nbytes(self) -> int:
        """Bytes at the fullest moment, on top of what the model takes without a cache."""
        return self.chosen.peak_nbytes + self.chosen.nbytes * (self.branches - 1)

    def flops(self, granularity: str | None = None) -> float:
        """Operations of a whole generation, one branch; NaN while full steps are unknown."""
        account = self._account(granularity)
        if self.full_steps is None:
            return float("nan")
        skipped = self.steps - self.full_steps - len(account.mixed_flops)
        computed = self.full_steps * account.full_flops + sum(account.mixed_flops)
        return float(computed + skipped * account.skipped_flops)

    def speedup(self, granularity: str | None = None) -> float:
        """FLOPs without the cache over FLOPs with it: what a kernel without overhead reaches."""
        return self.steps * self._account(granularity).full_flops / self.flops(granularity)

    @property
    def warning(self) -> str | None:
        """Why caching will not pay here, or None if it may."""
        if self.full_steps is None:
            if self.steps > FEW_STEPS:
                return None
            return (
                f"With {self.steps} steps two or three full ones come before the first skip: "
                "caching does not pay."
            )
        if self.speedup() >= WORTH_IT:
            return None
        return (
            f"{self.full_steps} of {self.steps} steps are computed, so the speedup is at most "
            f"{self.speedup():.2f}x: caching does not pay. A model distilled to a few steps has no "
            "neighbouring steps to forecast from."
        )

    def __str__(self) -> str:
        full = "as many as it decides" if self.full_steps is None else str(self.full_steps)
        lines = [
            f"{self.model}, {self.steps} steps, full steps: {full}, "
            + (f"mixed steps: {self.mixed_steps}, " if self.mixed_steps else "")
            + f"{self.chosen.full_flops / 1e12:.2f} TFLOPs a step",
            f"{'granularity':<14}{'histories':>10}{'held':>12}{'at peak':>12}{'ideal speedup':>15}",
        ]
        for account in self.accounts:
            mark = " *" if account.granularity == self.granularity else ""
            speed = self.speedup(account.granularity)
            shown = "" if speed != speed else f"{speed:.2f}x"
            lines.append(
                f"{account.granularity + mark:<14}{account.features:>10}"
                f"{_size(account.nbytes * self.branches):>12}"
                f"{_size(account.peak_nbytes + account.nbytes * (self.branches - 1)):>12}"
                f"{shown:>15}"
            )
        if self.full_steps is None and self.warning is None:
            lines.append(
                "The schedule adapts: how many steps it computes, and with it the speedup, depends "
                "on the model and the tolerance."
            )
        return "\n".join([*lines, *([self.warning] if self.warning else [])])

    def _account(self, granularity: str | None) -> Account:
        name = granularity or self.granularity
        return next(a for a in self.accounts if a.granularity == name)


def plan_foca_cache(
    model_or_pipeline: Any,
    inputs: Mapping[str, Any],
    config: FoCaCacheConfig | None = None,
    steps: int = 50,
    branches: int = 1,
) -> CacheEstimate:
    """Says what a cache will hold and save, without running anything.

    The model goes through a full and a skipped step on the meta device, in a copy without storage:
    any size of model and request will do, and no GPU is touched.

    Of a model alone the second step counts as computed, as a run does it where neither a scheduler
    nor names of branches tell one generation from the next.

    Args:
        model_or_pipeline: a supported transformer, on any device, or a pipeline that has one.
        inputs: the arguments of one call of the transformer; tensors are taken for their shapes
            and dtypes only, and may be on the meta device.
        config: how to cache; None: the default preset.
        steps: denoising steps of a generation.
        branches: how many calls a step makes (2 for guidance as two calls).

    Raises:
        TypeError, ValueError: the model is not supported, or has a cache already, or cannot cache
            at the granularity asked for, or `steps` is not that of a tuned plan.

    Example:
        >>> print(plan_foca_cache(model, {"hidden_states": x, "timestep": t, ...}, steps=28))
    """
    from foca_dit.adapters.dry_run import accounts, on_meta
    from foca_dit.adapters.hooks import find_hook
    from foca_dit.adapters.models import find_spec

    model, scheduler = transformer_of("plan_foca_cache", model_or_pipeline)
    config = checked(config, "plan_foca_cache")
    settings, spec = config.resolve(), find_spec(model)
    if find_hook(model) is not None:
        raise ValueError(
            f"plan_foca_cache: {type(model).__name__} has a cache: call remove_foca_cache first"
        )
    for name, value in (("steps", steps), ("branches", branches)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(fault("plan_foca_cache", name, "an integer >= 1", repr(value)))
    if isinstance(config.plan, TunedPlan) and steps != config.plan.plan.num_steps:
        expected = f"{config.plan.plan.num_steps}, for which the plan was tuned"
        raise ValueError(fault("plan_foca_cache", "steps", expected, steps))
    chosen = granularity_of("plan_foca_cache", model, spec, config)
    empty, schedule, alone = on_meta(model), settings.schedule, scheduler is None
    if isinstance(schedule, StepMask):
        full, one = _masked(empty, spec, chosen, inputs, config, schedule, steps, alone)
        return CacheEstimate(type(model).__name__, steps, full, (one,), chosen, branches)
    names = [g for g in spec.granularities if g == chosen or _fits(empty, spec, g)]
    counted = accounts(empty, spec, names, inputs, config)
    if schedule.uses_defects:
        known = _of_budget(schedule, steps, alone)
    else:
        known = len(_computed(schedule, steps, alone))
    return CacheEstimate(type(model).__name__, steps, known, counted, chosen, branches)


def _computed(schedule: Schedule, steps: int, alone: bool, feature: int = 0) -> list[int]:
    """The full steps of a run; with a model alone the second one, whatever the schedule says."""
    anchors: list[int] = []
    due = 0
    for step in range(steps):
        if step >= due or (alone and step == 1):
            anchors.append(step)
            due = schedule.next_full(anchors, feature)
    return anchors


def _of_budget(schedule: Schedule, steps: int, alone: bool) -> int | None:
    """How many full steps a budget comes to, its bounds and forced steps included; None: no budget.

    Counted on features of one curvature: where the steps lie depends on it, their number does not.
    """
    if getattr(schedule, "budget", None) is None:
        return None
    outlook = Outlook(tuple(map(float, range(steps))), (1.0,) * steps)
    anchors: list[int] = []
    due = 0
    for step in range(steps):
        if step >= due or (alone and step == 1):
            anchors.append(step)
            defects = [0.0, *(float(b - a) for a, b in pairwise(anchors))]
            due = schedule.decide(Situation(anchors, defects, outlook, degree=0)).next_full
    return len(anchors)


def _fits(model: torch.nn.Module, spec: ModelSpec, granularity: str) -> bool:
    """Whether a model can be cached at a granularity that its class has."""
    from foca_dit.adapters.layout import lay_out

    try:
        lay_out(model, spec, granularity, accumulate=True)
    except ValueError:
        return False
    return True


def _masked(
    model: torch.nn.Module,
    spec: ModelSpec,
    granularity: str,
    inputs: Mapping[str, Any],
    config: FoCaCacheConfig,
    schedule: StepMask,
    steps: int,
    alone: bool,
) -> tuple[int, Account]:
    """Full steps and account under a schedule that names single features, at one granularity."""
    from foca_dit.adapters.dry_run import accounts

    (plain,) = accounts(model, spec, [granularity], inputs, config)
    schedule.check("plan_foca_cache", plain.features, granularity)
    full_steps = [set(_computed(schedule, steps, alone, f)) for f in range(plain.features)]
    due = [frozenset(f for f, s in enumerate(full_steps) if step in s) for step in range(steps)]
    mixed = [some for some in due if 0 < len(some) < plain.features]
    full = sum(len(some) == plain.features for some in due)
    if granularity != "module" or not spec.is_modular:  # computed in full, and counted a fallback
        return full + len(mixed), plain
    (counted,) = accounts(model, spec, [granularity], inputs, config, mixed)
    return full, counted


def _size(nbytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes / 1e3:.1f} kB"
