"""Taylor and Hermite forecasts from finite differences of the anchors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foca_dit.schemes.base import Scheme, Table, fault, require_float, require_int

MAX_ORDER = 3


@dataclass(frozen=True)
class TaylorSeer(Scheme):
    """A Taylor polynomial around the anchor, its derivatives estimated by backward differences.

    History: (F_a, D, D2, ..), estimates of the derivatives; weights: (1, j, j^2/2, ..) with j the
    distance in tau. The i-th estimate is `i * (D_{i-1} - old D_{i-1}) / (tau_a - tau_b)`, with b
    the i-th anchor before a: i! times a divided difference, right for irregular gaps.

    `official=True` is what the published code does instead: every order is divided by the latest
    gap alone, so its second order is off whenever the gap changes, and no difference is taken
    before step `warmup - 1`. Above order 1 that start matters more than the gaps: second
    differences over the single steps of a warm-up are mostly roughness, which the first long gap
    multiplies. On the shipped models it is nearer to the full run (docs/evaluation.md).

    No order above 1 is exact on quadratics: D is the slope half a gap behind the anchor, and the
    Taylor weights do not make up for it. `Newton` does.

    Args:
        order: m, 1 to 3; fewer anchors use the orders they allow.
        official: Reproduce the published code.
        warmup: W, the number of full steps at the start. Read when `official` only.
    """

    order: int = 1
    official: bool = False
    warmup: int = 3

    name: ClassVar[str] = "taylorseer"
    citation: ClassVar[str] = (
        "Liu et al., From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers, "
        "arXiv:2503.06923; eq. 4 of the FoCa paper"
    )

    def __post_init__(self) -> None:
        require_int("TaylorSeer", "order", self.order, 1, MAX_ORDER)
        if not isinstance(self.official, bool):
            raise TypeError(fault("TaylorSeer", "official", "True or False", repr(self.official)))
        require_int("TaylorSeer", "warmup", self.warmup, 1)

    @property
    def history_size(self) -> int:
        return self.order + 1

    @property
    def exact_degree(self) -> int:
        return 1

    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        if self.official:
            return latest_gap_differences(tau, anchors, self.order, self.warmup)
        available = min(self.order, len(anchors) - 1)
        gaps = [(tau[anchors[-1]] - tau[anchors[-1 - i]]) / i for i in range(1, available + 1)]
        return difference_rows(self.order, gaps)

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        j = tau[step] - tau[anchors[-1]]
        available = min(self.order, len(anchors) - 1)
        if self.official:
            available = official_order(anchors, self.order, self.warmup)
        weights = np.zeros(self.order + 1)
        for i in range(available + 1):
            weights[i] = j**i / math.factorial(i)
        return weights


@dataclass(frozen=True)
class HiCache(Scheme):
    """Hermite polynomials in place of the Taylor monomials.

    History as the official TaylorSeer's; the i-th weight is `s^i H_i(s j) / i!` with the
    physicists' Hermite polynomials H_i: at s = 1/2 (1, j/2, (j^2 - 2)/8, ..).

    Not exact on linear trajectories: the slope enters with 2 s^2 j. Hermite polynomials have a unit
    of their own, so the unit of tau matters; the source uses the step index, and only there do
    the forecasts converge as steps shrink.

    Args:
        order: m, 1 to 3; fewer anchors use the orders they allow.
        scale: s, the contraction factor.
        warmup: W, the number of full steps at the start; no difference is taken before W - 1.
    """

    order: int = 2
    scale: float = 0.5
    warmup: int = 3

    name: ClassVar[str] = "hicache"
    citation: ClassVar[str] = (
        "Feng et al., HiCache: Training-free Acceleration of Diffusion Models via Hermite "
        "Polynomial-based Feature Caching, arXiv:2508.16984"
    )

    def __post_init__(self) -> None:
        require_int("HiCache", "order", self.order, 1, MAX_ORDER)
        require_float("HiCache", "scale", self.scale, 0.0)
        require_int("HiCache", "warmup", self.warmup, 1)

    @property
    def history_size(self) -> int:
        return self.order + 1

    @property
    def exact_degree(self) -> int:
        return 0

    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        return latest_gap_differences(tau, anchors, self.order, self.warmup)

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        x = self.scale * (tau[step] - tau[anchors[-1]])
        hermite = [1.0, 2.0 * x]
        for i in range(1, self.order):
            hermite.append(2.0 * x * hermite[i] - 2.0 * i * hermite[i - 1])
        weights = np.zeros(self.order + 1)
        for i in range(official_order(anchors, self.order, self.warmup) + 1):
            weights[i] = self.scale**i * hermite[i] / math.factorial(i)
        return weights


def official_order(anchors: list[int], order: int, warmup: int) -> int:
    """How many orders the published code has filled: it starts to difference at step W - 1."""
    differenced = sum(1 for a in anchors if a >= warmup - 1)
    return min(order, differenced, len(anchors) - 1)


def latest_gap_differences(tau: list[float], anchors: list[int], order: int, warmup: int) -> Table:
    """The published code's rows: all orders divided by the latest gap."""
    gap = tau[anchors[-1]] - tau[anchors[-2]]
    return difference_rows(order, [gap] * official_order(anchors, order, warmup))


def difference_rows(order: int, gaps: list[float]) -> Table:
    """Rows of D_i = (D_{i-1} - old D_{i-1}) / gaps[i-1]; zero above the available orders.

    Args:
        order: m; the history has m + 1 slots.
        gaps: The divisor of each available order.

    Returns:
        float64 [m, m + 2].
    """
    rows = np.zeros((order, order + 2))
    previous = np.zeros(order + 2)
    previous[-1] = 1.0
    for i, gap in enumerate(gaps):
        rows[i] = previous
        rows[i, i] -= 1.0
        rows[i] /= gap
        previous = rows[i]
    return rows
