"""What an error at a step makes of the image: the factor of each step's feature error.

Two parts. What the *sampler* makes of an error in the model's output follows from its coefficients
alone (flow matching with Euler steps: `|sigma_{i+1} - sigma_i|`). What the model makes of an error
in a feature, in the rest of that step and in all later ones, is measured at a few steps: one reused
feature, everything else computed, the distance of the images over the distance of the features.
The measured ratio varies slowly with the step and is noisy, so a parabola through its logarithm is
what is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from foca_dit.api import foca_cache
from foca_dit.calibration.fit import forecast_error
from foca_dit.calibration.grams import Array
from foca_dit.config import FoCaCacheConfig
from foca_dit.schedules import FullSteps

SMALL = 1e-6
"""Output that a sampler is run with: small, so that clipping (`clip_sample`) does not see it."""


def sampler_influence(scheduler: Any, steps: int) -> Array:
    """What an error of 1 in the model's output at step i is in the final sample, by the sampler.

    The sampler is run on scalars, once per step, with a small output at that step and 0 at all
    others: exact for every sampler that is linear in the outputs, multistep ones included, and for
    those that clip what they predict, as long as they do not.

    Args:
        scheduler: a deterministic diffusers scheduler; it is copied, not touched. If it has run a
            loop of so many steps, the levels of that loop are read: pipelines hand it levels of
            theirs (FLUX's end at 1/S, the scheduler's own at 1/1000), or shift them by the image's
            size. Else it sets them itself.
        steps: number of steps.

    Returns:
        float64 [S], absolute values.

    Raises:
        ValueError: the scheduler does not call the model once per step, or adds noise, or needs a
            generation to know its noise levels.
    """
    own = copy.deepcopy(scheduler)
    shifts = getattr(scheduler.config, "use_dynamic_shifting", False)
    set_by_itself = {"mu": 1.0} if shifts else {}  # any: replaced below
    begin = getattr(scheduler, "begin_index", None) or 0
    known = 0 if scheduler.timesteps is None else len(scheduler.timesteps) - begin
    if shifts and known != steps:
        raise ValueError(
            f"sampler_influence: expected a scheduler that has just run {steps} steps, got {known}"
        )

    def restart() -> Any:
        own.set_timesteps(steps, **set_by_itself)
        if known != steps:
            return own.timesteps
        for name in ("timesteps", "sigmas"):
            if hasattr(scheduler, name):  # on the host, where x is
                setattr(own, name, torch.as_tensor(getattr(scheduler, name)).cpu().clone())
        if begin:
            own.set_begin_index(begin)
        return own.timesteps[begin:]

    def final(outputs: Sequence[float]) -> float:
        timesteps = restart()
        if len(timesteps) != steps:
            raise ValueError(
                f"sampler_influence: {type(scheduler).__name__} calls the model "
                f"{len(timesteps)} times in {steps} steps: expected one call per step"
            )
        x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        for output, t in zip(outputs, timesteps, strict=True):
            x = own.step(torch.full_like(x, output), t, x).prev_sample
        return abs(float(x))

    if final([0.0] * steps) != 0.0:
        raise ValueError(
            f"sampler_influence: argument 'scheduler': expected a deterministic one, got "
            f"{type(scheduler).__name__}, which adds noise: a plan cannot be fitted to it"
        )
    return np.array([final(row) for row in SMALL * np.eye(steps)]) / SMALL


def probe_steps(steps: int, count: int) -> list[int]:
    """`count` steps, evenly spread between the third and the last but one."""
    return sorted({round(x) for x in np.linspace(2, max(2, steps - 2), count)})


def model_influence(
    model: torch.nn.Module,
    granularity: str,
    gram: Array,
    sampled: Array,
    generate: Callable[[], torch.Tensor],
    probes: Sequence[int],
    done: Callable[[], Any] | None = None,
) -> Array:
    """What an error in the feature at step i is in the final sample, by sampler and model.

    Args:
        model: a supported transformer, without a cache.
        granularity: what is cached.
        gram: float64 [S, S] of the features of `generate` alone, summed over features.
        sampled: [S], of `sampler_influence`.
        generate: runs one generation, always the same, and returns its samples.
        probes: the steps to measure; none: the sampler's part alone.
        done: called after each generation.

    Returns:
        float64 [S], distance of the samples per distance of the features.
    """
    steps = len(gram)
    full = generate()
    if done is not None:
        done()
    at, ratios = [], []
    for probe in probes:
        schedule = FullSteps([step for step in range(steps) if step != probe])
        config = FoCaCacheConfig(scheme="reuse", schedule=schedule, granularity=granularity)
        with foca_cache(model, config):
            other = generate()
        if done is not None:
            done()
        moved = float((other.double() - full.double()).square().sum())
        error = forecast_error(gram, [probe - 1], probe, [1.0])
        if moved > 0 and error > 0 and sampled[probe] > 0:
            at.append(probe)
            ratios.append(0.5 * np.log(moved / error) - np.log(sampled[probe]))
    if not at:
        return sampled.copy()
    curve = np.polyfit(at, ratios, min(2, len(at) - 1))
    inside = np.clip(np.arange(steps), min(at), max(at))
    influence: Array = sampled * np.exp(np.polyval(curve, inside))
    return influence
