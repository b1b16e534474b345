"""Time variables: what the schemes take for the distance between steps.

A scheme extrapolates in a time tau; which tau makes the features' paths straightest decides more
than the scheme does. Each variable here maps what a sampler knows about a step to tau, for flow
matching (x = (1 - sigma) data + sigma noise) and for DDPM-type noising (x = sqrt(abar) data +
sqrt(1 - abar) noise). All maps are strictly monotone and finite on the closed range of their
argument, so no two steps ever coincide and no end is at infinity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foca_dit.schemes.base import fault

FLOW_MARGIN = 1e-3
"""Added to sigma and to 1 - sigma in logarithms and ratios: log-SNR then ends at -6.9 and 6.9."""

PACED_MARGIN = 0.02
"""The margin in which a controller measures log-SNR: near where features move most evenly.

With the small one the first gap of a flow counts as three or four units in which the features move
as far as elsewhere in one. `benchmarks/pace.py` measures how evenly they move, by margin; among
0.02, 0.03 and 0.05 pictures of one seed decided (docs/quality.md).
"""


class TimeVariable(ABC):
    """A time variable. Both maps take scalars or arrays and return float64 of the same shape.

    Attributes:
        name: Key in `foca_dit.times.get`.
    """

    name: ClassVar[str]

    @abstractmethod
    def flow(self, step: ArrayLike, sigma: ArrayLike) -> NDArray[np.float64]:
        """tau of steps of a flow-matching sampler.

        Args:
            step: Step index.
            sigma: Share of noise at that step, in [0, 1].
        """

    @abstractmethod
    def ddpm(self, step: ArrayLike, alpha_bar: ArrayLike) -> NDArray[np.float64]:
        """tau of steps of a DDPM-type sampler (DDPM, DDIM, ..).

        Args:
            step: Step index.
            alpha_bar: Cumulative product of the alphas at that step, in [0, 1].
        """


class StepIndex(TimeVariable):
    """The step's number: tau = 0, 1, 2, .."""

    name: ClassVar[str] = "step"

    def flow(self, step: ArrayLike, sigma: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(step, dtype=np.float64)

    def ddpm(self, step: ArrayLike, alpha_bar: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(step, dtype=np.float64)


class Sigma(TimeVariable):
    """The noise level: sigma for flow matching, sqrt((1 - abar) / abar) for DDPM."""

    name: ClassVar[str] = "sigma"

    def flow(self, step: ArrayLike, sigma: ArrayLike) -> NDArray[np.float64]:
        return _unit_interval("sigma", sigma)

    def ddpm(self, step: ArrayLike, alpha_bar: ArrayLike) -> NDArray[np.float64]:
        abar = _unit_interval("alpha_bar", alpha_bar)
        margin = FLOW_MARGIN**2  # abar enters under a square root
        return np.sqrt((1 - abar + margin) / (abar + margin))


class LogSNR(TimeVariable):
    """Half the log signal-to-noise ratio: log((1 - sigma) / sigma), or log(abar / (1 - abar)) / 2.

    The margins keep the ends finite. They are added, not clipped to: clipping would map the first
    steps of a strongly shifted flow schedule to one and the same time.

    Args:
        margin: added to sigma and 1 - sigma, and squared to abar and 1 - abar, which enter under a
            square root.
    """

    name: ClassVar[str] = "log_snr"

    def __init__(self, margin: float = FLOW_MARGIN) -> None:
        self.margin = margin

    def flow(self, step: ArrayLike, sigma: ArrayLike) -> NDArray[np.float64]:
        s = _unit_interval("sigma", sigma)
        return np.log((1 - s + self.margin) / (s + self.margin))

    def ddpm(self, step: ArrayLike, alpha_bar: ArrayLike) -> NDArray[np.float64]:
        abar = _unit_interval("alpha_bar", alpha_bar)
        margin = self.margin**2
        return np.log((abar + margin) / (1 - abar + margin)) / 2


class PacedLogSNR(LogSNR):
    """Log-SNR with shorter ends: in which features move at an even pace, as a controller wants it.

    The margin is added to the shares of data and noise in the sample, for DDPM-type noising too.
    Under its square root the data's share would hardly count at the noisy end: steps there would
    look like no distance at all, while the features move.

    Args:
        margin: added to both shares.
    """

    def __init__(self, margin: float = PACED_MARGIN) -> None:
        super().__init__(margin)

    def ddpm(self, step: ArrayLike, alpha_bar: ArrayLike) -> NDArray[np.float64]:
        abar = _unit_interval("alpha_bar", alpha_bar)
        data, noise = np.sqrt(abar), np.sqrt(1 - abar)
        return np.log((data + self.margin) / (noise + self.margin))


Time = str | TimeVariable | Callable[[float], float]
"""A time variable by name, as an object, or as a function of the model's timestep."""

_TIMES: dict[str, TimeVariable] = {time.name: time for time in (StepIndex(), Sigma(), LogSNR())}


def names() -> tuple[str, ...]:
    """The names of all time variables."""
    return tuple(_TIMES)


def get(name: str) -> TimeVariable:
    """The time variable of that name.

    Raises:
        ValueError: There is none of that name; the message lists those there are.
    """
    if name not in _TIMES:
        raise ValueError(fault("times.get", "name", f"one of {', '.join(_TIMES)}", repr(name)))
    return _TIMES[name]


def paced(time: Time) -> Time:
    """The time in which a controller measures distances, for forecasts made in `time`.

    It is the same, but for the stretched ends of log-SNR: a forecast is the better for taking them
    as long (the slope at the start is then small), a step size controller is misled by them.
    """
    return PacedLogSNR() if time == LogSNR.name else time


def _unit_interval(argument: str, value: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(value, dtype=np.float64)
    inside = (values >= 0) & (values <= 1)  # False for NaN too
    if not inside.all():
        worst = values[~inside].flat[0]
        raise ValueError(fault("times", argument, "values from 0 to 1", worst))
    return values
