"""What a row of the evaluation is, and the arithmetic of budgets that rivals share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from foca_dit.evaluation.setting import Absent, Outcome, Setting
from foca_dit.schedules import Interval

WARMUPS = (3, 2, 1)

T = TypeVar("T")


@dataclass(frozen=True)
class Rival:
    """One line of the tables.

    Attributes:
        name: unique.
        group: what kind of rival it is, for the tables.
        source: where its definition comes from.
        run: from a setting and a budget of full steps to images; raises `Absent` if it cannot.
    """

    name: str
    group: str
    source: str
    run: Callable[[Setting, int], Outcome]


def uniform(budget: int, steps: int) -> Interval:
    """The uniform interval with that many full steps, or else the next fewer.

    The warm-up is 3 (FLUX in the paper) or else 2 (DiT) or 1, whichever comes closest.

    Raises:
        Absent: no interval makes so few.
    """
    choices = [
        (len(schedule.full_steps(steps)), -rank, schedule)
        for rank, warmup in enumerate(WARMUPS)
        for n in range(2, steps + 1)
        if len((schedule := Interval(n, warmup=warmup)).full_steps(steps)) <= budget
    ]
    if not choices:
        raise Absent(f"no uniform interval makes {budget} full steps of {steps}")
    return max(choices, key=lambda choice: choice[:2])[2]


def threshold_for(
    count: Callable[[float], float],
    budget: float,
    low: float = 1e-5,
    high: float = 1e3,
    halvings: int = 40,
) -> float:
    """The smallest threshold under which at most `budget` full steps are made.

    Args:
        count: full steps by threshold, not rising.
        budget: full steps.
        low, high: where to look.
        halvings: of the ratio between them.

    Raises:
        Absent: even `high` makes more.
    """
    least = count(high)
    if least > budget:
        raise Absent(f"makes at least {least:.1f} full steps, more than {budget}")
    for _ in range(halvings):
        middle = (low * high) ** 0.5
        if count(middle) > budget:
            low = middle
        else:
            high = middle
    return high


def best_count(candidates: Iterable[tuple[float, T]], budget: float) -> T:
    """The candidate with most full steps within the budget.

    Raises:
        Absent: all make more.
    """
    pairs = list(candidates)
    fits = [pair for pair in pairs if pair[0] <= budget]
    if not fits:
        least = min(pair[0] for pair in pairs)
        raise Absent(f"makes at least {least:.1f} full steps, more than {budget}")
    return max(fits, key=lambda pair: pair[0])[1]
