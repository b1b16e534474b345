"""Schemes that carry a slope from step to step: one recursion, many members.

Between full steps these schemes advance by `F_{k+1} = F_k + h_k s_k`, where the slope follows

    s_k = alpha_k D_a + beta_k s_{k-1},        s_{a-1} = (F_a - P) / h_{a-1}

D_a is the slope between the last two anchors, P the value used one step before the anchor, be it
a forecast or a computed feature. With the innovation e = s_{a-1} - D_a the forecast is a weighted
sum of (F_a, D_a, e). On uniform steps of size 1 and with constant alpha and beta this is the
two-parameter family of docs/method.md.

The history holds e and never P: rounding P to bf16 would ruin the small difference F_a - P. The
commit rebuilds P from the old history in fp32 instead.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foca_dit.schemes.base import Scheme, Table, require_choice, require_float


class SlopeRecursion(Scheme):
    """The common tables: history (F_a, D_a, e), P rebuilt from the scheme's own weights.

    Start-up: at the second anchor the value used before it was a reused feature. It says nothing
    about the slope, so e = 0 there; for two consecutive anchors the formula gives 0 by itself.
    """

    @property
    def order(self) -> int:
        return 1

    @property
    def history_size(self) -> int:
        return 3

    @property
    def exact_degree(self) -> int:
        return 1

    @abstractmethod
    def _coefficients(self, ratio: float) -> tuple[float, float]:
        """(alpha, beta) of a step that is `ratio` = h_k / h_{k-1} times the step before it."""

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        a = anchors[-1]
        of_slope, of_last = 0.0, 1.0  # s_k = of_slope * D_a + of_last * s_{a-1}
        slope_weight, innovation_weight = 0.0, 0.0
        for k in range(a, step):
            h = tau[k + 1] - tau[k]
            alpha, beta = self._coefficients(h / (tau[k] - tau[k - 1]))
            of_slope, of_last = alpha + beta * of_slope, beta * of_last
            slope_weight += h * (of_slope + of_last)
            innovation_weight += h * of_last
        return np.array([1.0, slope_weight, innovation_weight])

    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        a, before = anchors[-1], anchors[-2]
        gap = tau[a] - tau[before]
        rows = np.array([[-1 / gap, 0.0, 0.0, 1 / gap], [0.0, 0.0, 0.0, 0.0]])
        if len(anchors) > 2:
            h = tau[a] - tau[a - 1]
            used = np.array([1.0, 0.0, 0.0])  # P, as weights of the old history
            if a - 1 > before:
                used = self._weights(tau, anchors[:-1], a - 1)
            rows[1] = [-1 / h + 1 / gap, -used[1] / h, -self._carry(used[2] / h), 1 / h - 1 / gap]
        return rows

    def _carry(self, factor: float) -> float:
        """How much of the old innovation returns in the new one; a member may bound it."""
        return factor


@dataclass(frozen=True)
class TwoParameter(SlopeRecursion):
    """The two-parameter family s_k = alpha D_a + beta s_{k-1} with constant coefficients.

    (1/2, 1/2) is FoCa, rolling, with feedback 1; (0, 1) extrapolates the last two values used;
    (1, 0) is first-order Taylor. Exact on linear trajectories iff alpha + beta = 1.

    Args:
        alpha: Weight of the anchors' slope.
        beta: Weight of the last slope used.
    """

    alpha: float = 0.5
    beta: float = 0.5

    name: ClassVar[str] = "two_parameter"
    citation: ClassVar[str] = "docs/method.md, section 6"

    def __post_init__(self) -> None:
        require_float("TwoParameter", "alpha", self.alpha)
        require_float("TwoParameter", "beta", self.beta)

    @property
    def exact_degree(self) -> int:
        return 1 if self.alpha + self.beta == 1.0 else 0

    def _coefficients(self, ratio: float) -> tuple[float, float]:
        return self.alpha, self.beta


@dataclass(frozen=True)
class BDF2(SlopeRecursion):
    """FoCa's predictor alone (the ablation): the BDF2 formula with an extrapolated derivative.

    With w = h_k / h_{k-1} the variable-step predictor
    `[(1+w)^2 F_k - w^2 F_{k-1} + (1+w) h_k D_k] / (1+2w)` is the slope recursion
    `s_k = [(1+w) D_k + w s_{k-1}] / (1+2w)`.

    Args:
        reading: "rolling": D_k is the first difference of the last two values used, so s_k =
            s_{k-1}, linear extrapolation of them, unstable across intervals of 3 or more.
            "frozen": D_k stays D_a, (2/3, 1/3) on uniform steps.
    """

    reading: str = "rolling"

    name: ClassVar[str] = "bdf2"
    citation: ClassVar[str] = (
        "Zheng et al., Forecast then Calibrate: Feature Caching as ODE for Efficient Diffusion "
        "Transformers, arXiv:2508.16211, eq. 7; variable steps: Hairer, Norsett, Wanner, Solving "
        "Ordinary Differential Equations I, section III.5"
    )

    def __post_init__(self) -> None:
        require_choice("BDF2", "reading", self.reading, ("rolling", "frozen"))

    def _coefficients(self, ratio: float) -> tuple[float, float]:
        if self.reading == "rolling":
            return 0.0, 1.0
        return (1 + ratio) / (1 + 2 * ratio), ratio / (1 + 2 * ratio)


@dataclass(frozen=True)
class FrozenSlopeHeun(SlopeRecursion):
    """BDF2 predictor with the anchors' slope, Heun corrector with the predictor's first difference.

    One more way to read the paper: the predictor is `BDF2("frozen")`, and the corrector takes
    (F^ - F_k) / h_k for the derivative at the predicted point. (5/6, 1/6) on uniform steps.
    """

    name: ClassVar[str] = "frozen_slope_heun"
    citation: ClassVar[str] = "Zheng et al., arXiv:2508.16211, eqs. 7 and 8; docs/method.md"

    def _coefficients(self, ratio: float) -> tuple[float, float]:
        beta = ratio / (1 + 2 * ratio) / 2
        return 1 - beta, beta
