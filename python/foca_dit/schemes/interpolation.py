"""Polynomial extrapolation: through the anchors (Newton) or the values used (Adams-Bashforth)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foca_dit.schemes.base import Scheme, Table, require_int

MAX_ORDER = 4


@dataclass(frozen=True)
class Newton(Scheme):
    """The polynomial of degree m through the last m + 1 anchors, in Lagrange's form.

    History: the last m + 1 computed features, newest first, which stay exact when stored in the
    features' own dtype. Weights: the Lagrange basis at the forecast time, for irregular gaps.

    Args:
        order: m, 1 to 4; fewer anchors use the degree they allow.
    """

    order: int = 2

    name: ClassVar[str] = "newton"
    citation: ClassVar[str] = (
        "Newton's interpolation formula with divided differences; Hairer, Norsett, Wanner, "
        "Solving Ordinary Differential Equations I, section III.5"
    )

    def __post_init__(self) -> None:
        require_int("Newton", "order", self.order, 1, MAX_ORDER)

    @property
    def history_size(self) -> int:
        return self.order + 1

    @property
    def exact_degree(self) -> int:
        return self.order

    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        rows = np.zeros((self.order, self.order + 2))
        for p in range(min(self.order, len(anchors) - 1)):
            rows[p, p] = 1.0  # slot p + 1 takes what slot p held
        return rows

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        nodes = [tau[a] for a in reversed(anchors[-(self.order + 1) :])]
        weights = np.zeros(self.order + 1)
        for p, node in enumerate(nodes):
            weight = 1.0
            for other in nodes[:p] + nodes[p + 1 :]:
                weight *= (tau[step] - other) / (node - other)
            weights[p] = weight
        return weights


@dataclass(frozen=True)
class AdamsBashforth(Scheme):
    """Extrapolation of the last m values used, forecasts included: grad^m F = 0 on uniform steps.

    Every step puts the polynomial of degree m - 1 through the last m values used and continues
    it; (2, -1) for m = 2, (3, -3, 1) for m = 3. Between full steps the polynomial does not change,
    for a forecast lies on it. A full step with feature F changes it to

        p_new(t) = p_old(t) + (F - p_old(tau_a)) * prod_z (t - z) / (tau_a - z)

    with z the times of the m - 1 steps before a, where the values used stay what they were. Until
    m anchors are there, z runs over the anchors instead: a start that reused features would carry
    their errors on. History: the Taylor coefficients of p at the anchor, (F_a, p', p''/2, ..);
    weights (1, j, j^2, ..). m = 2 is `BDF2("rolling")`; all m >= 2 are unstable at intervals of 3
    or more, because the whole defect returns through the zeros at the last steps.

    Args:
        order: m, the number of values, 1 to 4.
    """

    order: int = 2

    name: ClassVar[str] = "adams_bashforth"
    citation: ClassVar[str] = (
        "Yu et al., AB-Cache: Training-Free Acceleration of Diffusion Models via Adams-Bashforth "
        "Cached Feature Reuse, arXiv:2504.10540; the recursion on values used is our reading"
    )

    def __post_init__(self) -> None:
        require_int("AdamsBashforth", "order", self.order, 1, MAX_ORDER)

    @property
    def history_size(self) -> int:
        return self.order

    @property
    def exact_degree(self) -> int:
        return self.order - 1

    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        m, a = self.order, anchors[-1]
        kept = anchors[:-1] if len(anchors) <= m else range(a - m + 1, a)
        bump = np.ones(1)  # coefficients of prod_z (t - z) / (tau_a - z) in powers of t - tau_a
        for z in kept:
            bump = np.convolve(bump, [1.0, 1.0 / (tau[a] - tau[z])])
        bump = np.pad(bump, (0, m - len(bump)))
        gap = tau[a] - tau[anchors[-2]]
        shift = np.array(  # the old polynomial's coefficients, moved from a' to a
            [[math.comb(k, i) * gap ** max(k - i, 0) for k in range(m)] for i in range(m)]
        )
        table = np.column_stack([shift - np.outer(bump, shift[0]), bump])
        return np.asarray(table[1:], dtype=np.float64)

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        j = tau[step] - tau[anchors[-1]]
        return np.array([j**i for i in range(self.order)])
