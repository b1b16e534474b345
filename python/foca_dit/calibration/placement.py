"""Where the full steps should stand: the best placement of a budget, by dynamic programming.

What an interval costs depends on the full steps that its forecasts read: the last three. So the
state of the recursion is that triple (p, q, a), and with V_m[p, q, a] the least cost of all steps
before a with m full steps placed,

    V_{m+1}[q, a, b] = min_p V_m[p, q, a] + cost[a][p, q, b]

It is exact: no placement of the same budget costs less. Fewer than three anchors are written by
repeating the oldest: (0, 0, 0) at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foca_dit.calibration.fit import NOISE, pair_fits
from foca_dit.calibration.grams import Array

HISTORY = 3
"""Anchors read by a forecast, and tensors kept per feature."""


@dataclass(frozen=True)
class Placement:
    """Full steps, and the cost predicted for them."""

    full_steps: tuple[int, ...]
    cost: float


def interval_costs(
    gram: Array,
    step_weights: Sequence[float] | Array,
    history: int = HISTORY,
    noise: float = NOISE,
    forced: Sequence[int] = (0,),
) -> list[Array]:
    """What every possible interval costs with the best weights.

    Args:
        gram: [S, S], the inner products of the features.
        step_weights: S factors of the steps' squared errors.
        history: anchors that a forecast may read, 1 to 3.
        noise: relative error of an anchor (`foca_dit.calibration.fit`).
        forced: steps that must be full: no interval skips one.

    Returns:
        Per anchor a, float64 [a + 1, a + 1, S - a]: over p, q and the number of steps skipped
        after a, the summed weighted error of those steps; infinite where p <= q <= a is not an
        order of anchors.
    """
    steps = len(gram)
    if not 1 <= history <= HISTORY:
        raise ValueError(
            f"interval_costs: argument 'history': expected an integer from 1 to {HISTORY}, "
            f"got {history}"
        )
    costs = []
    for a in range(steps):
        n = a + 1
        p, q = np.arange(n)[:, None], np.arange(n)[None, :]
        # p = q only while there are no more anchors: then they are all the first step.
        impossible = (p > q) | ((p == q) & (q != 0)) | ((q == a) & (a != 0))
        table = np.zeros((n, n, steps - a))
        for i in range(a + 1, steps):
            error = pair_fits(gram, a, i, noise)[0]
            if history == 2:
                error = np.broadcast_to(np.diag(error)[None, :], error.shape)
            elif history == 1:
                error = np.full_like(error, error[a, a])
            table[:, :, i - a] = table[:, :, i - a - 1] + step_weights[i] * error
        table[impossible] = np.inf
        table[:, :, min((f for f in forced if f > a), default=steps) - a :] = np.inf
        costs.append(table)
    return costs


def place(costs: list[Array], budgets: Sequence[int]) -> dict[int, Placement]:
    """The best placement for each budget of full steps.

    Args:
        costs: of `interval_costs`.
        budgets: numbers of full steps, from 1 to S. Step 0 is always full.

    Returns:
        A placement per budget.
    """
    steps = len(costs)
    for budget in budgets:
        if not 1 <= budget <= steps:
            raise ValueError(
                f"place: argument 'budgets': expected numbers from 1 to {steps}, got {budget}"
            )
    value = np.full((steps, steps, steps), np.inf)
    value[0, 0, 0] = 0.0
    came_from: list[np.ndarray] = []
    found: dict[int, Placement] = {}
    for placed in range(1, max(budgets, default=0) + 1):
        if placed in budgets:
            found[placed] = _finish(costs, value, came_from)
        if placed == max(budgets):
            break
        value, best = _advance(costs, value)
        came_from.append(best)
    return found


def _advance(costs: list[Array], value: Array) -> tuple[Array, np.ndarray]:
    """One more full step: the new values [S, S, S] over (q, a, b), and the p they came from."""
    steps = len(costs)
    after = np.full_like(value, np.inf)
    best = np.zeros(value.shape, dtype=np.int16)
    for a in range(steps - 1):
        n = a + 1
        # Over (p, q, skipped): the last column of `costs` skips to the end, the next full step b
        # stands one after the skipped ones.
        total = value[:n, :n, a, None] + costs[a][:, :, : steps - a - 1]
        best[:n, a, a + 1 :] = total.argmin(axis=0)
        after[:n, a, a + 1 :] = total.min(axis=0)
    return after, best


def _finish(costs: list[Array], value: Array, came_from: list[np.ndarray]) -> Placement:
    """The cheapest end, and the way that led there."""
    steps = len(costs)
    ends = [value[: a + 1, : a + 1, a] + costs[a][:, :, -1] for a in range(steps)]
    a = int(np.argmin([end.min() for end in ends]))
    cost = float(ends[a].min())
    p, q = (int(x) for x in np.unravel_index(int(ends[a].argmin()), ends[a].shape))
    full = [a]
    for best in reversed(came_from):
        p, q, a = int(best[p, q, a]), p, q
        full.append(a)
    return Placement(tuple(reversed(full)), cost)
