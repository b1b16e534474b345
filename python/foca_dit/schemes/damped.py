"""Forecasts whose trend fades or is corrected step by step: damped trend and GOC."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foca_dit.schemes.base import (
    Scheme,
    Table,
    fault,
    require_choice,
    require_float,
    require_int,
)


@dataclass(frozen=True)
class DampedTrend(Scheme):
    """First-order Taylor whose slope fades by the factor phi at every step.

    History: (F_a, D_a); weights (1, sum_i phi^i h_{a+i-1}): between reuse (phi = 0) and
    first-order Taylor (phi = 1).

    Args:
        phi: The damping factor per step, 0 to 1.
    """

    phi: float = 0.9

    name: ClassVar[str] = "damped_trend"
    citation: ClassVar[str] = (
        "Gardner and McKenzie, Forecasting Trends in Time Series, Management Science 31(10), 1985"
    )

    def __post_init__(self) -> None:
        require_float("DampedTrend", "phi", self.phi, 0.0, 1.0)

    @property
    def order(self) -> int:
        return 1

    @property
    def history_size(self) -> int:
        return 2

    @property
    def exact_degree(self) -> int:
        return 1 if self.phi == 1.0 else 0

    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        gap = tau[anchors[-1]] - tau[anchors[-2]]
        return np.array([[-1 / gap, 0.0, 1 / gap]])

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        factor, trend = 1.0, 0.0
        for k in range(anchors[-1] + 1, step + 1):
            factor *= self.phi
            trend += factor * (tau[k] - tau[k - 1])
        return np.array([1.0, trend])


@dataclass(frozen=True)
class GOC(Scheme):
    """Gradient-Optimized Cache: reuse, corrected by the jump that the last full step revealed.

    The jump of a full step, s_0 = (F_a - P) / h_{a-1} with P the value used one step earlier, is
    propagated by `s_j = eta s_{j-1}` while the steps are in the inflection set S; at the first
    step outside it drops to 0 and stays there until the next full step. History: (F_a, s_0).

    The source has no time variable; dividing by h makes no difference on uniform steps and keeps
    the correction per unit of tau otherwise. Constants are its only exact trajectories, and it
    takes the jump over a long gap for a single step's.

    Args:
        eta: The propagation weight; the published code has 1.2 with FORA and 0.8 with L2C.
        inflection_steps: S, the steps at which the correction applies; None: at every step.
            docs/method.md says how S can be found from calibration features.
        jump: Which jump is propagated. "used": s_0 above, P being the value used, corrections
            included; what was corrected too far returns in the next jump, with a factor beyond 1
            for eta >= 1. "computed": (F_a - F_a') / gap between computed features, per step; then
            nothing returns, and eta = 1 is first-order Taylor on S.
    """

    eta: float = 1.2
    inflection_steps: Collection[int] | None = None
    jump: str = "used"

    name: ClassVar[str] = "goc"
    citation: ClassVar[str] = (
        "Qiu et al., Accelerating Diffusion Transformer via Gradient-Optimized Cache, "
        "arXiv:2503.05156"
    )

    def __post_init__(self) -> None:
        require_float("GOC", "eta", self.eta, 0.0)
        require_choice("GOC", "jump", self.jump, ("used", "computed"))
        if self.inflection_steps is None:
            return
        if isinstance(self.inflection_steps, str) or not isinstance(
            self.inflection_steps, Collection
        ):
            expected = "a collection of steps or None"
            raise TypeError(fault("GOC", "inflection_steps", expected, self.inflection_steps))
        steps = {
            require_int("GOC", f"inflection_steps[{i}]", s, 0)
            for i, s in enumerate(self.inflection_steps)
        }
        object.__setattr__(self, "inflection_steps", tuple(sorted(steps)))

    @property
    def order(self) -> int:
        return 1

    @property
    def history_size(self) -> int:
        return 2

    @property
    def exact_degree(self) -> int:
        return 0

    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        a = anchors[-1]
        if self.jump == "computed":
            gap = tau[a] - tau[anchors[-2]]
            return np.array([[-1 / gap, 0.0, 1 / gap]])
        h = tau[a] - tau[a - 1]
        return np.array([[-1 / h, -self._propagated(tau, anchors[-2], a - 1) / h, 1 / h]])

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        return np.array([1.0, self._propagated(tau, anchors[-1], step)])

    def _propagated(self, tau: list[float], anchor: int, step: int) -> float:
        """sum_j s_j h_{a+j-1} per unit of s_0, from the anchor to `step`."""
        factor, total = 1.0, 0.0
        for k in range(anchor + 1, step + 1):
            if self.inflection_steps is not None and k not in self.inflection_steps:
                break
            factor *= self.eta
            total += factor * (tau[k] - tau[k - 1])
        return total
