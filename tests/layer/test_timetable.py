"""Timesteps that were rounded to half precision on their way to the model."""

import itertools

import diffusers
import pytest
import torch
from models import flux_prompt, tiny_flux_pipeline
from test_models_pipelines import PIPELINES, _of

from foca_dit import Adaptive, FoCaCacheConfig, apply_foca_cache, foca_cache_stats, schemes
from foca_dit.calibration.calibrated import Calibrated
from foca_dit.clock import NoiseLevels
from foca_dit.origin import Origin
from foca_dit.timetable import Timetable, is_half


def _timetable(shift=7.0, steps=50, unit=1000.0):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return Timetable(NoiseLevels.of(scheduler, unit))


def _rounded(timestep, unit, dtype):
    """As pipelines do it: to the model's dtype, then, where the unit is 1, through 1000."""
    passed = torch.tensor(timestep * 1000 / unit).to(dtype)
    return float(passed if unit == 1000 else passed / 1000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("unit", [1.0, 1000.0])
@pytest.mark.parametrize(
    ("shift", "steps"), [(1.0, 50), (3.0, 28), (7.0, 50), (7.0, 100), (17.0, 50)]
)
def test_every_step_of_a_loop_is_found_again(shift, steps, unit, dtype):
    timetable = _timetable(shift, steps, unit)
    rounded = [_rounded(t, unit, dtype) for t in timetable.steps]
    if (shift, dtype) == (17.0, torch.bfloat16):
        assert len(set(rounded)) < 0.8 * steps  # many stand at one and the same number
    found, last = [], None
    for timestep in rounded:
        last = timetable.exact(timestep, last, last, lambda: False)
        found.append(last)
    assert tuple(found) == timetable.steps


def test_a_repeated_call_stays_at_its_step():
    timetable = _timetable()
    one, two = next(
        pair
        for pair in itertools.pairwise(timetable.steps)
        if _rounded(pair[0], 1000, torch.bfloat16) == _rounded(pair[1], 1000, torch.bfloat16)
    )
    timestep = _rounded(one, 1000, torch.bfloat16)
    assert timetable.exact(timestep, one, one, lambda: True) == one
    assert timetable.exact(timestep, one, one, lambda: False) == two
    # A guidance branch that was left out of a step goes where the others are.
    before = timetable.steps[timetable.steps.index(one) - 1]
    assert timetable.exact(timestep, before, two, lambda: False) == two
    assert timetable.exact(timestep, before, before, lambda: False) == one


@pytest.mark.parametrize("timestep", [0.7123456, 996.8123, 333.3333])
def test_what_was_not_rounded_is_left_alone(timestep):
    assert not is_half(timestep)
    assert _timetable().exact(timestep, None, None, lambda: False) == timestep


def test_nor_is_what_is_no_step_of_the_loop():
    assert _timetable(shift=1.0, steps=4).exact(625.0, None, None, lambda: False) == 625.0
    assert Timetable(NoiseLevels()).exact(996.0, None, None, lambda: False) == 996.0


def _film(shift, steps, dtype, config, name="HunyuanVideoPipeline"):
    pipeline = _of(name)
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    pipeline.transformer.to(dtype)
    model = apply_foca_cache(pipeline, config)
    inputs = {
        key: value.to(dtype) if getattr(value, "is_floating_point", bool)() else value
        for key, value in PIPELINES[name][2].items()
    }
    generator = torch.Generator().manual_seed(0)
    pipeline(**inputs, num_inference_steps=steps, generator=generator, output_type="latent")
    return foca_cache_stats(model), pipeline


@pytest.mark.parametrize(("shift", "steps", "full_steps"), [(7.0, 50, 12), (17.0, 30, 8)])
@pytest.mark.parametrize("name", ["HunyuanVideoPipeline", "QwenImagePipeline"])
def test_a_bfloat16_pipeline_takes_the_full_steps_of_a_float32_one(name, shift, steps, full_steps):
    """Guidance in one call a step, and in two."""
    config = FoCaCacheConfig(cache_interval=5, time="log_snr")
    calls = 2 if name == "QwenImagePipeline" else 1
    for dtype in (torch.float32, torch.bfloat16):
        stats, _ = _film(shift, steps, dtype, config, name)
        assert stats["full_steps"] == calls * full_steps
        assert stats["restarts"] == {}


def test_its_plan_is_accepted():
    """A plan that was made for a loop whose first steps bfloat16 cannot tell apart."""
    _, pipeline = _film(7.0, 50, torch.bfloat16, FoCaCacheConfig())
    known = Origin.of(
        pipeline.transformer, "stack", pipeline.scheduler, pipeline.scheduler.timesteps.tolist()
    )
    scheme = Calibrated(schemes.Reuse(), made_for=known)
    config = FoCaCacheConfig(scheme=scheme, granularity="stack", cache_interval=5)
    stats, _ = _film(7.0, 50, torch.bfloat16, config)
    assert stats["full_steps"] == 12


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("steps", [28, 50, 100])
def test_a_bfloat16_flux_forecasts_in_the_schedulers_own_times(steps, guidance):
    """Its timesteps are rounded before and after a division by 1000."""
    seen = []

    def time(timestep):
        seen.append(timestep)
        return timestep

    pipeline = tiny_flux_pipeline()
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline.transformer.to(torch.bfloat16)
    apply_foca_cache(pipeline, FoCaCacheConfig(cache_interval=5, time=time))
    prompt = {name: value.to(torch.bfloat16) for name, value in flux_prompt(0).items()}
    if guidance > 1:
        prompt |= {f"negative_{name}": 0.5 * value for name, value in prompt.items()}
    pipeline(
        **prompt,
        true_cfg_scale=guidance,
        height=16,
        width=16,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    exact = (pipeline.scheduler.timesteps / 1000).repeat_interleave(2 if guidance > 1 else 1)
    torch.testing.assert_close(torch.tensor(seen), exact, rtol=1e-6, atol=0)
    assert foca_cache_stats(pipeline)["restarts"] == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_budget_is_met(dtype):
    stats, _ = _film(7.0, 50, dtype, FoCaCacheConfig(schedule=Adaptive(budget=9)))
    assert stats["full_steps"] == 9
