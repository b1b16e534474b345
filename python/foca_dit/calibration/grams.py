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

from foca_dit.calibration.record import Trajectories, recording

Array = NDArray[np.float64]

MAX_ELEMENTS = 1 << 22
"""Elements kept per feature and model call; larger features are read at an even stride."""


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
        ValueError: the generations differ in their timesteps, or a feature is not finite.
    """
    total: Array | None = None
    timesteps: tuple[float, ...] = ()
    for generate in generations:
        sink = Trajectories(MAX_ELEMENTS)
        with recording(model, granularity, sink) as state:
            generate()
            own, features = state.timesteps, state.features
        if total is None:
            timesteps = own
            total = np.zeros((features or 0, len(own), len(own)))
        elif own != timesteps:
            raise ValueError(
                "record_grams: argument 'generations': expected the same timesteps in all, got "
                f"{_ends(timesteps)} and {_ends(own)}"
            )
        for _, feature, values in sink.stacked(len(own)):
            x = values.flatten(1)
            total[feature] += (x @ x.T).numpy()
        if done is not None:
            done()
    if total is None or not timesteps:
        raise ValueError(
            "record_grams: argument 'generations': expected at least one, that runs the model"
        )
    return Grams(total, timesteps)


def _ends(timesteps: Sequence[float]) -> str:
    if len(timesteps) < 2:
        return f"{len(timesteps)} steps"
    return f"{len(timesteps)} steps from {timesteps[0]:g}, {timesteps[1]:g} to {timesteps[-1]:g}"
