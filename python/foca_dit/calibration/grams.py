"""Gram matrices of a model's features: all that calibration keeps of them.

With the features of all S steps as columns of a matrix X, the Gram matrix is `X^T X` [S, S]. The
squared error of *any* linear forecast of any step from any others is a quadratic form in it, and so
is the squared sum of such errors. Full steps are placed and weights fitted without another look at
the features: kilobytes in the place of gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foca_dit.calibration.record import recorded

Array = NDArray[np.float64]

MAX_ELEMENTS = 1 << 22
"""Elements kept per feature and model call; larger features are read at an even stride.
Their inner products are scaled to the whole feature's: features of any size then weigh alike."""


@dataclass(frozen=True, eq=False)
class Grams:
    """The Gram matrices of L features over S steps, summed over all samples and branches.

    Attributes:
        grams: float64 [L, S, S].
        timesteps: the model's timestep at every step.
    """

    grams: Array
    timesteps: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        """S."""
        return len(self.timesteps)

    def total(self) -> Array:
        """All features as one, [S, S]: a forecast's errors add up over features."""
        summed: Array = self.grams.sum(axis=0)
        return summed


def record_grams(
    model: torch.nn.Module,
    granularity: str,
    generations: Sequence[Callable[[], Any]],
    done: Callable[[], Any] | None = None,
) -> Grams:
    """Runs generations in full and keeps the Gram matrices of their features.

    Args:
        model: a supported transformer, without a cache.
        granularity: "module", "stack" or "output".
        generations: each runs one whole generation of the model, all with the same timesteps.
        done: called after each of them.

    Raises:
        ValueError: no generation, timesteps that differ, or a feature that is not finite.
    """
    total: Array | None = None
    timesteps: tuple[float, ...] = ()
    for one in recorded(
        "record_grams: argument 'generations'", model, granularity, generations, done, MAX_ELEMENTS
    ):
        timesteps = one.timesteps
        if total is None:
            total = np.zeros((one.num_features, len(timesteps), len(timesteps)))
        for _, feature, values in one.features():
            x = values.flatten(1)
            total[feature] += (x @ x.T).numpy()
    assert total is not None
    return Grams(total, timesteps)
