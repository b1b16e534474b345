"""FoCa: forecast with BDF2, calibrate with Heun's corrector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foca_dit.schemes.base import Table, require_choice, require_float
from foca_dit.schemes.slopes import SlopeRecursion


@dataclass(frozen=True)
class FoCa(SlopeRecursion):
    """Forecast-then-Calibrate in closed form.

    The BDF2 predictor put into the BDF2 derivative returns the slope it was given, so a step of
    the paper is `F_{k+1} = F_k + h_k/2 (D_a + D_k)`. The paper leaves open which values F_k,
    F_{k-1} and D_k stand for between full steps; both readings are kept (docs/method.md).

    "rolling": the last two values used, and their first difference. History (F_a, D_a, e),
    weights (1, tau_k - tau_a, c sum_i 2^-i h_{a+i-1}): first-order Taylor plus a feedback of the
    anchor's innovation e that saturates. "anchored": one step from the last anchors, the slope at
    the anchor from three of them. History (F_a, D_a, f2) with the second divided difference f2,
    weights (1, j, j g / 2).

    Args:
        reading: "rolling" or "anchored".
        feedback: c. 1 is the paper's recursion, 0 is first-order Taylor, 1/2 was the best in our
            measurements at long intervals. Rolling only.
        max_carry: Upper bound on the part of the old innovation that returns in the new one, per
            interval. It is below `feedback` on uniform steps and so not active there for
            feedback <= 1; a growing innovation on strongly graded times (log-SNR) is what it
            prevents. `math.inf`: as derived. Rolling only.
        first_slope: share of the slope that is followed while there are only two anchors. 1 as
            derived; 0 is reuse until the third. The difference of a generation's first two steps is
            taken over one step, and what is rough in it is extrapolated with it.
    """

    reading: str = "rolling"
    feedback: float = 0.5
    max_carry: float = 1.0
    first_slope: float = 1.0

    name: ClassVar[str] = "foca"
    citation: ClassVar[str] = (
        "Zheng et al., Forecast then Calibrate: Feature Caching as ODE for Efficient Diffusion "
        "Transformers, arXiv:2508.16211, eqs. 6-8"
    )

    def __post_init__(self) -> None:
        require_choice("FoCa", "reading", self.reading, ("rolling", "anchored"))
        require_float("FoCa", "feedback", self.feedback, 0.0)
        require_float("FoCa", "max_carry", self.max_carry, 0.0, allow_infinity=True)
        require_float("FoCa", "first_slope", self.first_slope, 0.0, 1.0)

    def _coefficients(self, ratio: float) -> tuple[float, float]:
        return 0.5, 0.5

    def _carry(self, factor: float) -> float:
        return min(factor, self.max_carry)

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        a = anchors[-1]
        j = tau[step] - tau[a]
        along = j if len(anchors) > 2 else self.first_slope * j
        if self.reading == "anchored":
            gap = tau[a] - tau[anchors[-2]]
            return np.array([1.0, along, 0.5 * j * gap])
        # The recursion summed up: step i takes 2^-i of the innovation along. No rounding between.
        returned = 0.0
        for i in range(1, step - a + 1):
            returned += math.ldexp(tau[a + i] - tau[a + i - 1], -i)
        return np.array([1.0, along, self.feedback * returned])

    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        if self.reading == "rolling":
            return super()._rows(tau, anchors)
        a, before = anchors[-1], anchors[-2]
        gap = tau[a] - tau[before]
        rows = np.array([[-1 / gap, 0.0, 0.0, 1 / gap], [0.0, 0.0, 0.0, 0.0]])
        if len(anchors) > 2:
            span = tau[a] - tau[anchors[-3]]
            rows[1] = [-1 / (gap * span), -1 / span, 0.0, 1 / (gap * span)]
        return rows
