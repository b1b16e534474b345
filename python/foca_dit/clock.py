"""From the timestep that a model is called with to the time variable that schemes forecast in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from foca_dit import times


@dataclass(frozen=True)
class NoiseLevels:
    """What a model's timestep means.

    Attributes:
        timestep_scale: the timestep of sigma 1 in a flow-matching model (1000 in most, 1 in FLUX).
        alpha_bar: for DDPM-type models, the cumulative product of the alphas by timestep [T];
            None for flow matching.
    """

    timestep_scale: float = 1000.0
    alpha_bar: tuple[float, ...] | None = None

    @classmethod
    def of(cls, scheduler: Any, timestep_scale: float) -> NoiseLevels:
        """Reads them off a diffusers scheduler (None: flow matching)."""
        table = getattr(scheduler, "alphas_cumprod", None)
        if table is None:
            return cls(timestep_scale)
        return cls(timestep_scale, tuple(float(value) for value in table))


Clock = Callable[[float, int], float]


def make_clock(time: str | Callable[[float], float], levels: NoiseLevels) -> Clock:
    """A function (timestep, step index) -> tau.

    Args:
        time: the name of a time variable, or a function of the timestep.
        levels: what the timestep means.
    """
    if callable(time):
        return lambda timestep, step: float(time(timestep))
    variable = times.get(time)
    if levels.alpha_bar is None:
        return lambda timestep, step: float(
            variable.flow(step, min(max(timestep / levels.timestep_scale, 0.0), 1.0))
        )
    table = np.asarray(levels.alpha_bar)
    grid = np.arange(len(table))
    return lambda timestep, step: float(variable.ddpm(step, np.interp(timestep, grid, table)))
