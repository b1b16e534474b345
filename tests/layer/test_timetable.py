"""Timesteps that were rounded to half precision on their way to the model."""

import diffusers
import pytest
import torch
from models import flux_prompt, tiny_flux_pipeline
from test_models_pipelines import PIPELINES, _of

from foca_dit import Adaptive, FoCaCacheConfig, apply_foca_cache, foca_cache_stats, schemes
from foca_dit.calibration.calibrated import Calibrated
from foca_dit.clock import NoiseLevels
from foca_dit.origin import Origin
from foca_dit.timetable import Timetable


def _timetable(shift=7.0, steps=50, unit=1000.0, cls=diffusers.FlowMatchEulerDiscreteScheduler):
    scheduler = cls(shift=shift)
    scheduler.set_timesteps(steps)
    return Timetable(NoiseLevels.of(scheduler, unit))


def _rounded(timestep, unit, dtype):
    """As pipelines do it: to the model's dtype, then, where the unit is 1, through 1000."""
    passed = torch.tensor(timestep * 1000 / unit).to(dtype)
    return float(passed if unit == 1000 else passed / 1000)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("unit", [1.0, 1000.0])
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize(
    ("shift", "steps"), [(1.0, 50), (3.0, 28), (7.0, 150), (17.0, 50), (17.0, 100)]
)
def test_every_step_of_a_loop_is_found_again(shift, steps, start, unit, dtype):
    """Also of one that starts further down (img2img)."""
    timetable = _timetable(shift, steps, unit)
    scheduler = timetable.levels.scheduler
    scheduler.set_begin_index(start)
    x, found, rounded = torch.zeros(1), [], []
    for t, step in zip(scheduler.timesteps[start:], timetable.steps[start:], strict=True):
        rounded.append(_rounded(step, unit, dtype))
        for _ in range(2):  # two guidance branches
            found.append(timetable.exact(rounded[-1], dtype))
        scheduler.step(x, t, x)
    assert found[::2] == found[1::2] == list(timetable.steps[start:])
    if (shift, dtype) == (17.0, torch.bfloat16):
        assert len(set(rounded)) < 0.8 * len(rounded)  # many stand at one and the same number


def test_both_evaluations_of_heun_are_at_their_steps():
    timetable = _timetable(7.0, 50, cls=diffusers.FlowMatchHeunDiscreteScheduler)
    scheduler, x = timetable.levels.scheduler, torch.zeros(1)
    for t, step in zip(scheduler.timesteps, timetable.steps, strict=True):
        assert timetable.exact(_rounded(step, 1000, torch.bfloat16), torch.bfloat16) == step
        scheduler.step(x, t, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, None])
def test_what_was_not_rounded_is_left_alone(dtype):
    assert _timetable(shift=17.0).exact(996.0, dtype) == 996.0


def test_nor_is_what_the_scheduler_does_not_stand_at():
    """A loop of one's own beside it, or another one's."""
    timetable = _timetable(shift=3.0, steps=28)
    assert timetable.exact(1000.0, torch.bfloat16) == 1000.0
    assert timetable.exact(988.0, torch.bfloat16) == 988.0  # its second step, rounded
    assert Timetable(NoiseLevels()).exact(996.0, torch.bfloat16) == 996.0


def test_tables_of_other_kinds():
    class Scheduler:
        timesteps = (1000, 500, 250)

    class Property:
        @property
        def timesteps(self):
            return torch.tensor([1000.0, 500.0])

    listed = Timetable(NoiseLevels.of(Scheduler(), 1.0))
    assert listed.steps == (1.0, 0.5, 0.25)
    # One that is made anew at every look says nothing about loops.
    assert Timetable(NoiseLevels.of(Property(), 1000.0)).loop is None


def test_another_request_at_the_first_step_of_a_loop_that_goes_on():
    """A warm-up call, then a generation from another sample: the scheduler is not set anew."""
    images = []
    for warm_up in (True, False):
        pipeline = tiny_flux_pipeline()
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        pipeline.scheduler.set_timesteps(20)
        apply_foca_cache(pipeline, FoCaCacheConfig(cache_interval=4, granularity="output"))
        fixed = {"img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3)}
        fixed |= flux_prompt(0) | {"return_dict": False}
        fixed["encoder_hidden_states"] = fixed.pop("prompt_embeds")
        fixed["pooled_projections"] = fixed.pop("pooled_prompt_embeds")
        samples = torch.randn(2, 1, 6, 4, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            if warm_up:
                pipeline.transformer(samples[0], timestep=torch.tensor([1.0]), **fixed)
            x = samples[1]
            for t in pipeline.scheduler.timesteps:
                output = pipeline.transformer(x, timestep=t[None] / 1000, **fixed)[0]
                x = pipeline.scheduler.step(output, t, x)[0]
        images.append(x)
    assert torch.equal(*images)


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
