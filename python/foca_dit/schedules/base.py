"""What a schedule is: it says at which steps a feature is computed in full.

A schedule answers one question, `next_full`: after the full steps so far, which step is the next?
One that adapts answers it in `decide`, from what the features did.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from foca_dit.schedules.sampler import Outlook
from foca_dit.schemes.base import require_int

NEVER = sys.maxsize
"""What `next_full` returns when no further full step follows: later than any step."""


@dataclass(frozen=True)
class Decision:
    """What an adaptive schedule decided at a full step.

    Attributes:
        next_full: the next full step, or `NEVER`.
        predicted: the error that the steps skipped until then are predicted to add to the final
            sample, in the unit of the schedule's tolerance; NaN: no prediction.
        finite: False if what was measured was not finite, so that the decision ignores it.
    """

    next_full: int
    predicted: float = math.nan
    finite: bool = True


@dataclass(frozen=True)
class Situation:
    """What an adaptive schedule is told at a full step.

    Attributes:
        anchors: the full steps since the last reset, the one just computed included.
        defects: for each anchor, how far the features were from what their history would have
            forecast for it, relative to their norm; NaN where that could not be measured.
        outlook: times and weights of all steps, past and to come.
        degree: the scheme's `exact_degree`.
    """

    anchors: Sequence[int]
    defects: Sequence[float]
    outlook: Outlook
    degree: int = 1


class Schedule(ABC):
    """Decides, at each full step, when the next one is due.

    Attributes:
        uses_defects: True for schedules that adapt to the measured defects of the features.
    """

    uses_defects: ClassVar[bool] = False

    @abstractmethod
    def next_full(self, anchors: Sequence[int], feature: int = 0) -> int:
        """The next step at which the feature is computed.

        Args:
            anchors: The feature's full steps since the last reset, strictly increasing; with
                none, the answer is 0: the first step is always full.
            feature: Index of the feature, for schedules that treat features differently.

        Returns:
            A step after `anchors[-1]`, or `NEVER`.
        """

    def decide(self, seen: Situation) -> Decision:
        """One decision for all features, asked of schedules that use defects after a full step."""
        return Decision(self.next_full(seen.anchors))

    def full_steps(self, num_steps: int, feature: int = 0) -> tuple[int, ...]:
        """All full steps out of `num_steps`; only for schedules that need no defects.

        Raises:
            ValueError: The schedule is adaptive, so its steps are not known beforehand.
        """
        if self.uses_defects:
            raise ValueError(
                f"{type(self).__name__}: the full steps of an adaptive schedule are known only "
                "while it runs"
            )
        require_int(type(self).__name__, "num_steps", num_steps, 0)
        anchors: list[int] = []
        step = self.next_full(anchors, feature)
        while step < num_steps:
            anchors.append(step)
            step = self.next_full(anchors, feature)
        return tuple(anchors)
