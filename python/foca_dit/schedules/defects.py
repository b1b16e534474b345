"""What a full step tells an adaptive schedule: how wrong the old history would have been there.

The commit reduces it in the pass that it makes anyway, so measuring costs no pass over memory of
its own, and one host read per full step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from foca_dit.schemes import Scheme
from foca_dit.schemes.base import Table

ROWS = 2  # extra rows of a transition: the defect, and the feature itself


def defect_rows(scheme: Scheme, tau: Sequence[float], anchors: Sequence[int]) -> Table:
    """The rows [2, K + 1] whose norms a commit reduces: (feature - forecast of it) and feature.

    The first commit of a history has nothing to forecast from: its defect is the feature itself.
    """
    rows = np.zeros((ROWS, scheme.history_size + 1))
    rows[:, -1] = 1.0
    if len(anchors) > 1:
        rows[0, :-1] = -scheme.weights(tau, anchors[:-1], anchors[-1])
    return rows


class DefectMeter:
    """The sums of squares of one full step, over all features.

    Args:
        count: number of features L.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._step = -1
        self._sums: dict[torch.device, torch.Tensor] = {}
        self.defects: dict[int, float] = {}  # by step

    def slot(self, step: int, feature: int, device: torch.device) -> torch.Tensor:
        """Where the commit of a feature reduces to: float32 [2] on its device."""
        if step != self._step:
            self._step, self._sums = step, {}  # new ones: inference mode may have begun or ended
        if device not in self._sums:
            self._sums[device] = torch.zeros(self._count, ROWS, device=device)
        return self._sums[device][feature]

    def read(self, reduce: Any = None) -> None:
        """Notes the relative defect of the step: the one host read (one per device with features).

        It is `||feature - forecast|| / ||feature||` over all features; 0 for features that are 0 as
        forecast; not finite if they are not.

        Args:
            reduce: called with the sums [2] of each device before they are read.
        """
        defect, norm = 0.0, 0.0
        for sums in self._sums.values():
            total = sums.sum(0)
            if reduce is not None:
                reduce(total)
            squares = total.tolist()
            defect, norm = defect + squares[0], norm + squares[1]
        ratio = 0.0
        if defect != 0.0:  # NaN too
            ratio = math.sqrt(defect / norm) if norm > 0.0 else math.inf
        self.defects[self._step] = ratio
