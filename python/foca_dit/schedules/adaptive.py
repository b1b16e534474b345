"""The adaptive interval: at each full step, how far can forecasts go?

`Adaptive` is the schedule, defects.py reads what a full step measures, and the rest is arithmetic
on floats: docs/method.md, "The controller", derives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from foca_dit.schedules.base import NEVER, Decision, Schedule, Situation
from foca_dit.schemes.base import fault, require_float, require_int

ROUNDING = 1e-6
"""Defects below this share of the feature are taken for it: a constant feature has no curvature."""

SETTLED = 2
"""Measured curvatures from which on a budget may be spent as unevenly as they say."""

BLIND_REACH = 3.0
"""How far a slope is followed before any curvature is known, in gaps that it was taken over."""

BISECTIONS = 40
LOG_TOL_RANGE = (-45.0, 45.0)


@dataclass(frozen=True)
class Adaptive(Schedule):
    """Goes as far at each full step as the predicted error of the final sample allows.

    At a full step the features are compared with what their old history would have forecast there.
    That gives a curvature; curvature, the sampler's weights and the horizon predict the error of
    every step to come, and the next full step is due before their sum exceeds the tolerance. All
    features share the decision. It costs one host read of two numbers per full step.

    Give either a tolerance or a budget:

    Args:
        tol: error that one interval of skipped steps may add to the final sample, relative to the
            size of the model's output. Halving it takes about a third more full steps.
        budget: number of full steps of a whole generation; the tolerance is chosen anew at each of
            them so that the rest is met, with no gap above the mean of what is left before two
            curvatures are measured. Bounds and forced steps come first: what `max_gap` and `tail`
            ask for beyond the budget is computed all the same. It needs to know the steps to come.
        min_gap: the smallest distance between full steps.
        max_gap: the largest; None: no limit.
        first: full steps at the start, at least 1. With a tolerance, as many as the scheme needs to
            measure a curvature are added.
        last: full steps at the end.
        tail: from this step on every step is full; None: no such step.
        safety: share of the tolerance that is used.
        trust: how much the latest curvature counts beside those before it, above 0 to 1: the
            geometric moving average of curvatures takes this share of each new one.
        timesteps: the model's timesteps of the whole loop, for a model without a pipeline. Without
            them, and without a scheduler, steps are assumed to continue like the last one, down to
            timestep 0; so they are, with a warning, where the calls do not follow this list.
        reduce: called with the sums of squares, float32 [2], before they are read: where features
            are split over ranks, all-reduce them here, so that all ranks decide alike.

    Example:
        >>> FoCaCacheConfig(schedule=Adaptive(tol=0.005))
        >>> FoCaCacheConfig(schedule=Adaptive(budget=12))
    """

    tol: float | None = None
    budget: int | None = None
    min_gap: int = 1
    max_gap: int | None = None
    first: int = 2
    last: int = 0
    tail: int | None = None
    safety: float = 1.0
    trust: float = 0.35
    timesteps: Sequence[float] | None = None
    reduce: Callable[[Any], object] | None = None

    uses_defects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name = "Adaptive"
        if (self.tol is None) == (self.budget is None):
            got = f"tol={self.tol!r}, budget={self.budget!r}"
            raise ValueError(f"{name}: expected either 'tol' or 'budget', got {got}")
        if self.tol is not None and require_float(name, "tol", self.tol, 0.0) == 0.0:
            raise ValueError(fault(name, "tol", "a number above 0", self.tol))
        require_int(name, "min_gap", self.min_gap, 1)
        if self.max_gap is not None:
            require_int(name, "max_gap", self.max_gap, self.min_gap)
        require_int(name, "first", self.first, 1)
        require_int(name, "last", self.last, 0)
        if self.tail is not None:
            require_int(name, "tail", self.tail, 0)
        if self.budget is not None:
            require_int(name, "budget", self.budget, self.first + self.last)
        if require_float(name, "safety", self.safety, 0.0, 1.0) == 0.0:
            raise ValueError(fault(name, "safety", "a number above 0", self.safety))
        if require_float(name, "trust", self.trust, 0.0, 1.0) == 0.0:
            raise ValueError(fault(name, "trust", "a number above 0", self.trust))
        if self.timesteps is not None:
            steps = tuple(
                require_float(name, f"timesteps[{i}]", t) for i, t in enumerate(self.timesteps)
            )
            object.__setattr__(self, "timesteps", steps)

    def next_full(self, anchors: Sequence[int], feature: int = 0) -> int:
        """The step after the last anchor: without an outlook nothing longer can be justified."""
        return anchors[-1] + 1 if anchors else 0

    def decide(self, seen: Situation) -> Decision:
        """The next full step after the one just computed."""
        anchors, defects, degree = seen.anchors, seen.defects, max(seen.degree, 0)
        if len(anchors) < self.first:
            return Decision(anchors[-1] + 1, 0.0)
        measurable = len(anchors) >= degree + 2
        walk = _Walk(self, seen)
        if measurable and not math.isfinite(defects[-1]):
            return Decision(walk.shortest, math.nan, finite=False)
        known = [
            max(defect, ROUNDING) / horizon
            for i, defect in enumerate(defects)
            if i > degree
            and math.isfinite(defect)
            and (horizon := _horizon(seen.outlook.tau, anchors[:i], anchors[i], degree)) > 0
        ]
        if self.budget is not None:
            walk.hold_back(self.budget - len(anchors), len(known))
        if not known:
            if self.budget is None:
                return Decision(walk.shortest, math.nan)
            known = [1.0]  # the curvature is one factor of all errors and cancels
        usual = math.exp(sum(map(math.log, known)) / len(known))
        latest = known[0]
        for curvature in known[1:]:
            latest = latest ** (1 - self.trust) * curvature**self.trust
        if self.tol is not None:
            steps, error = walk.run(self.safety * self.tol, latest, usual, limit=1)
        else:
            assert self.budget is not None
            steps, error = walk.within(self.budget - len(anchors), latest, usual)
        return Decision(steps[0] if steps else NEVER, error if measurable else math.nan)


class _Walk:
    """Goes through the steps to come and sets full steps where the predicted error says so."""

    def __init__(self, rule: Adaptive, seen: Situation) -> None:
        outlook = seen.outlook
        self.tau, self.weights = outlook.tau, outlook.weights
        self.min_gap, self.max_gap = rule.min_gap, rule.max_gap or len(outlook.tau) + 1
        ends = len(outlook.tau) - rule.last
        self.tail = ends if rule.tail is None else min(ends, rule.tail)
        self.degree = max(seen.degree, 0)
        self.anchors = [*seen.anchors[-self.degree - 1 :]]
        self.first_gap = self.max_gap

    def hold_back(self, left: int, known: int) -> None:
        """Bounds the gap after the last anchor while little has been measured.

        Args:
            left: full steps of the budget that are left.
            known: curvatures measured so far.
        """
        last = self.anchors[-1]
        end = max(self.tail, last + 1)
        left -= len(self.tau) - end  # the full steps at the end are spoken for
        if left <= 0 or known >= SETTLED:
            return
        mean = (end - last) // (left + 1)
        self.first_gap = max(1, min(self.max_gap, mean))
        if known or len(self.anchors) < 2:
            return
        reach = BLIND_REACH * abs(self.tau[last] - self.tau[self.anchors[-2]])
        ahead = range(last + 1, min(last + self.first_gap, len(self.tau)))
        near = sum(abs(self.tau[step] - self.tau[last]) <= reach for step in ahead)
        self.first_gap = min(self.first_gap, near + 1)

    @property
    def shortest(self) -> int:
        """The next full step after the shortest gap, which the full steps at the end cut short."""
        after = self.anchors[-1] + 1
        return max(after, min(after - 1 + self.min_gap, self.tail))

    def run(self, tol: float, latest: float, usual: float, limit: int) -> tuple[list[int], float]:
        """Up to `limit` full steps under a tolerance, and the error predicted before the first.

        Args:
            tol: predicted error of an interval.
            latest: the curvature in the first interval.
            usual: the curvature in those after it.
            limit: number of full steps after which to stop.
        """
        steps: list[int] = []
        anchors, curvature = list(self.anchors), latest
        total, first_total = 0.0, 0.0
        for step in range(anchors[-1] + 1, len(self.tau)):
            gap = step - anchors[-1]
            error = self.weights[step] * curvature * _horizon(self.tau, anchors, step, self.degree)
            long = total + error > tol or gap >= (self.max_gap if steps else self.first_gap)
            if (long and gap >= self.min_gap) or step >= self.tail:
                steps.append(step)
                if len(steps) >= limit:
                    break
                anchors = [*anchors[-self.degree :], step] if self.degree else [step]
                total, curvature = 0.0, usual
                continue
            total += error
            if not steps:
                first_total = total
        return steps, first_total

    def within(self, count: int, latest: float, usual: float) -> tuple[list[int], float]:
        """As many full steps as are left, under the smallest tolerance that needs no more."""
        if count <= 0:
            return self.run(math.inf, latest, usual, limit=1)
        low, high = LOG_TOL_RANGE
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            steps, _ = self.run(math.exp(middle), latest, usual, limit=count + 1)
            low, high = (middle, high) if len(steps) > count else (low, middle)
        return self.run(math.exp(high), latest, usual, limit=count + 1)


def _horizon(tau: Sequence[float], anchors: Sequence[int], step: int, degree: int) -> float:
    """`|product of tau_step - tau_anchor|` over the last degree + 1 anchors.

    By this a forecast exact to the degree misses a curve, times its divided difference.
    """
    product = 1.0
    for anchor in anchors[-degree - 1 :]:
        product *= tau[step] - tau[anchor]
    return abs(product)
