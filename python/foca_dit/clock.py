"""From the timestep that a model is called with to the time variable that schemes forecast in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foca_dit import times


def _of_quarter_log(timestep: float) -> float:
    return math.exp(4 * timestep)


def _of_angle(timestep: float) -> float:
    return math.tan(min(timestep, 1 - 1e-6) * math.pi / 2)


# Schedulers of EDM's kind noise as x = data + sigma noise and call the model with a function of
# sigma (their `precondition_noise`): its inverse, by their class.
_SIGMA_OF_EDM: dict[str, Callable[[float], float]] = {
    "EDMEulerScheduler": _of_quarter_log,
    "EDMDPMSolverMultistepScheduler": _of_quarter_log,
    "CosineDPMSolverMultistepScheduler": _of_angle,  # Stable Audio's
}


@dataclass(frozen=True)
class NoiseLevels:
    """What a model's timestep means.

    Attributes:
        timestep_scale: the timestep of sigma 1 in a flow-matching model (1000 in most, 1 in FLUX).
        alpha_bar: for DDPM-type models, the cumulative product of the alphas by timestep [T];
            None for flow matching.
        prediction: what the model predicts: "flow" (the velocity of flow matching), "edm" (EDM's
            preconditioned output), or one of diffusers' "epsilon", "v_prediction", "sample".
        runs_up: whether timestep 0 is pure noise and `timestep_scale` the data (Lumina, Mochi).
        sigma_of: for EDM, the noise's standard deviation at a timestep, the data's being near 1.
        sigma_data: the data's standard deviation that EDM's preconditioning assumes.
        scheduler: the diffusers scheduler of the pipeline, which knows the steps to come; None for
            a bare model.
    """

    timestep_scale: float = 1000.0
    alpha_bar: tuple[float, ...] | None = None
    prediction: str = "flow"
    runs_up: bool = False
    sigma_of: Callable[[float], float] | None = None
    sigma_data: float = 1.0
    scheduler: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, scheduler: Any, timestep_scale: float, runs_up: bool = False) -> NoiseLevels:
        """Reads them off a diffusers scheduler (None: flow matching) and off the model's table."""
        table = getattr(scheduler, "alphas_cumprod", None)
        config = getattr(scheduler, "config", None)
        prediction = getattr(config, "prediction_type", "epsilon")
        # UniPC, DPM-Solver and alike have a table in any case: Wan's and Sana's leave it unused.
        is_flow = prediction == "flow_prediction" or getattr(config, "use_flow_sigmas", False)
        if getattr(config, "timestep_type", "") == "continuous" and prediction == "v_prediction":
            # EulerDiscreteScheduler then goes by log(sigma) / 4 and leaves its table unused; its v
            # is EDM's output for data of deviation 1.
            return cls(
                timestep_scale, prediction="edm", sigma_of=_of_quarter_log, scheduler=scheduler
            )
        if table is not None and not is_flow:
            alphas = tuple(float(v) for v in table)
            return cls(timestep_scale, alphas, prediction, scheduler=scheduler)
        if (sigma_of := _SIGMA_OF_EDM.get(type(scheduler).__name__)) is not None:
            return cls(
                timestep_scale,
                prediction="edm",
                sigma_of=sigma_of,
                sigma_data=scheduler.config.sigma_data,
                scheduler=scheduler,
            )
        upwards = runs_up or getattr(config, "invert_sigmas", False)
        return cls(timestep_scale, runs_up=upwards, scheduler=scheduler)

    @property
    def largest(self) -> float:
        """The largest timestep."""
        return self.timestep_scale if self.alpha_bar is None else float(len(self.alpha_bar) - 1)

    def covers(self, timestep: float) -> bool:
        """Whether a noise level belongs to this timestep, but for rounding; if not, none is known.

        A model may be called with something else than its kind usually is: EDM's c_noise, say,
        without the scheduler that tells.
        """
        if self.sigma_of is not None:
            return math.isfinite(timestep)
        slack = self.largest / 64  # timesteps in bfloat16
        return -slack <= timestep <= self.largest + slack

    def sigma(self, timestep: float) -> float:
        """The noise share of flow matching, in [0, 1]; of EDM, brought to the same form."""
        if self.sigma_of is not None:
            noise = self.sigma_of(timestep)
            return noise / (1.0 + noise)
        share = min(max(timestep / self.timestep_scale, 0.0), 1.0)
        return 1.0 - share if self.runs_up else share

    def cumulative(self, timestep: float) -> float:
        """abar of a DDPM-type model, between the table's entries too."""
        assert self.alpha_bar is not None
        table = self._alphas
        return float(np.interp(timestep, np.arange(len(table)), table))

    @cached_property
    def _alphas(self) -> NDArray[np.float64]:
        return np.asarray(self.alpha_bar)

    def place(self, timestep: float) -> tuple[float, float]:
        """(alpha, sigma) with x = alpha data + sigma noise."""
        if self.alpha_bar is None:
            sigma = self.sigma(timestep)
            return 1.0 - sigma, sigma
        abar = self.cumulative(timestep)
        return math.sqrt(abar), math.sqrt(1.0 - abar)

    @property
    def step_index(self) -> int | None:
        """Where in its table the scheduler stands: the step that is computed now.

        None if there is no scheduler, or one that does not count.
        """
        for name in ("step_index", "begin_index"):  # the latter until the first step was made
            if (index := getattr(self.scheduler, name, None)) is not None:
                return int(index)
        return 0 if hasattr(self.scheduler, "step_index") else None

    @property
    def table(self) -> Any:
        """The scheduler's timesteps as they stand, or None; every generation sets a new one."""
        return getattr(self.scheduler, "timesteps", None)

    def planned(self) -> tuple[float, ...] | None:
        """The model's timesteps of the loop that the scheduler is set to, or None.

        A host read when the scheduler keeps them on a GPU: ask once per generation.
        """
        steps = self.table
        if steps is None or len(steps) == 0:
            return None
        steps = steps.tolist() if hasattr(steps, "tolist") else list(steps)
        if self.alpha_bar is not None or self.sigma_of is not None:
            return tuple(float(t) for t in steps)
        config = getattr(self.scheduler, "config", None)
        unit = self.timestep_scale / getattr(config, "num_train_timesteps", 1000)
        flipped = self.runs_up and not getattr(config, "invert_sigmas", False)
        model_steps = (unit * float(t) for t in steps)
        return tuple(self.timestep_scale - t if flipped else t for t in model_steps)


Clock = Callable[[float, int], float]


def make_clock(time: times.Time, levels: NoiseLevels) -> Clock:
    """A function (timestep, step index) -> tau.

    Args:
        time: a time variable, its name, or a function of the timestep.
        levels: what the timestep means.
    """
    if callable(time):
        return lambda timestep, step: float(time(timestep))
    variable = times.get(time) if isinstance(time, str) else time
    if levels.alpha_bar is None:
        return lambda timestep, step: float(variable.flow(step, levels.sigma(timestep)))
    return lambda timestep, step: float(variable.ddpm(step, levels.cumulative(timestep)))
