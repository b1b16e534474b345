"""What a sampler makes of an error in the model's output, step by step.

A forecast's error enters the sample with the factor that the sampler gives the output, and what has
entered is then carried to the end by the rest of the trajectory. Both factors follow from the noise
levels alone; docs/method.md, "The controller", derives them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from foca_dit.clock import Clock, NoiseLevels

LARGE_STD, NOISE_STD = 10.0, 2.0
"""Standard deviation of the data along the directions that errors take, by what is predicted.

Where the output holds the data (flow, v, sample, EDM), errors lie along the data's large
structures, which the trajectory stretches on its way from noise to data. Where it is the noise,
they are at the noisy end like noise: along all directions alike. Both were chosen on the shipped
models (docs/method.md, "The controller"); schedules depend on them weakly.
"""


@dataclass(frozen=True)
class Outlook:
    """All steps of a generation, past and to come, as a controller sees them.

    Attributes:
        tau: the place of every step on the features' path (`foca_dit.times.paced`).
        weights: per step, how much a relative error of the output there moves the final sample.
        assumed: whether the steps to come are a guess: each like the last one, down to timestep 0.
    """

    tau: tuple[float, ...]
    weights: tuple[float, ...]
    assumed: bool = False


def look_ahead(
    clock: Clock,
    levels: NoiseLevels,
    timesteps: Sequence[float],
    planned: Sequence[float] | None,
) -> Outlook:
    """What is known about the steps to come.

    Args:
        clock: maps a timestep and a step index to a place on the features' path.
        levels: what the timestep means.
        timesteps: the model's timesteps so far, at least one.
        planned: the timesteps of the whole loop, which may have begun before `timesteps` does
            (img2img); None, or a list that does not continue `timesteps`: unknown.

    Returns:
        The outlook. When the steps to come are unknown they are assumed to continue like the last.
    """
    future = None if planned is None else continuation(timesteps, planned)
    assumed = future is None
    if future is None:
        future = _more_of_the_same(timesteps, levels)
    steps = [*timesteps, *future]
    tau = tuple(clock(t, i) for i, t in enumerate(steps))
    return Outlook(tau, error_weights(levels, steps), assumed)


def error_weights(
    levels: NoiseLevels, timesteps: Sequence[float], data_std: float | None = None
) -> tuple[float, ...]:
    """Per step, `|d x_end / d output|` up to a common factor: the sampler's part times the flow's.

    A deterministic first-order sampler goes from (alpha, sigma) to (alpha', sigma') and multiplies
    the model's output by a coefficient of these four numbers. From there to the end the exact flow
    of data with standard deviation c stretches an error by `c / sqrt(alpha'^2 c^2 + sigma'^2)`.

    Args:
        levels: what the timestep means, and what the model predicts.
        timesteps: the model's timestep at every step; the sampler ends at the data.
        data_std: c; None: by what the model predicts.

    Returns:
        One non-negative weight per timestep; 1 for all if their noise levels are not known.
    """
    if not all(levels.covers(t) for t in timesteps):
        return (1.0,) * len(timesteps)
    if data_std is None:
        data_std = NOISE_STD if levels.prediction == "epsilon" else LARGE_STD
    places = [levels.place(t) for t in timesteps]
    ends = [*places[1:], (1.0, 0.0)]
    if places[-1][1] > places[0][1]:  # from data to noise (inversion)
        ends[-1] = places[-1]
    weights = []
    for (alpha, sigma), (alpha_next, sigma_next) in zip(places, ends, strict=True):
        if levels.prediction == "edm":
            direct = _edm_coefficient(levels.sigma_data, alpha, sigma, alpha_next, sigma_next)
        else:
            direct = _coefficient(levels.prediction, alpha, sigma, alpha_next, sigma_next)
        stretch = data_std / math.hypot(alpha_next * data_std, sigma_next)
        weights.append(abs(direct) * stretch)
    return tuple(weights)


def _coefficient(
    prediction: str, alpha: float, sigma: float, alpha_next: float, sigma_next: float
) -> float:
    """d x' / d output of the first-order step, by what the model predicts."""
    if prediction == "flow":  # x' = x + (sigma' - sigma) output
        return sigma_next - sigma
    if prediction == "v_prediction":  # x0 = alpha x - sigma v, noise = sigma x + alpha v
        return sigma_next * alpha - alpha_next * sigma
    if prediction == "sample":  # noise = (x - alpha x0) / sigma
        return alpha_next - sigma_next * alpha / max(sigma, 1e-4)
    return sigma_next - alpha_next * sigma / max(alpha, 1e-4)  # x0 = (x - sigma noise) / alpha


def _edm_coefficient(
    sigma_data: float, alpha: float, sigma: float, alpha_next: float, sigma_next: float
) -> float:
    """The same for EDM: x' = x + (s'/s - 1) (x - D), D = c_skip x + c_out output, s = sigma/alpha.

    x is scaled here to alpha data + sigma noise with alpha + sigma = 1.
    """
    noise, noise_next = max(sigma / alpha, 1e-12), sigma_next / alpha_next
    c_out = noise * sigma_data / math.hypot(noise, sigma_data)
    return (1.0 - noise_next / noise) * c_out * alpha_next


def continuation(timesteps: Sequence[float], planned: Sequence[float]) -> list[float] | None:
    """The planned timesteps after the last one seen, or None if the plan is another loop's."""
    steps = [t for i, t in enumerate(planned) if i == 0 or t != planned[i - 1]]
    first = min(range(len(steps)), key=lambda i: abs(steps[i] - timesteps[0]), default=0)
    known = steps[first : first + len(timesteps)]
    if len(known) < len(timesteps):
        return None
    # A timestep may have been through bfloat16, which keeps eight bits, twice (FLUX).
    near = (abs(a - b) <= 2**-7 * abs(b) for a, b in zip(known, timesteps, strict=True))
    return steps[first + len(timesteps) :] if all(near) else None


def _more_of_the_same(timesteps: Sequence[float], levels: NoiseLevels) -> list[float]:
    """Steps like the last one, down to timestep 0 (up to the largest when the loop goes up)."""
    if len(timesteps) < 2:
        return []
    step = timesteps[-1] - timesteps[-2]
    room = timesteps[-1] if step < 0 else levels.largest - timesteps[-1]
    # A step that would end at 0 is the sampler's last: the model is not called at 0.
    count = max(0, math.ceil(room / abs(step) - 1e-6) - 1)
    return [timesteps[-1] + step * (i + 1) for i in range(min(count, 10_000))]
