"""What a user changes between generations, and what goes wrong inside one: no reset is called."""

import copy
import itertools
import weakref

import diffusers
import pytest
import torch
from cases import BY_NAME
from models import tiny_dit_pipeline, tiny_flux_pipeline
from test_guidance import _dit
from test_persistence import _generate

from foca_dit import Adaptive, FoCaCacheConfig, apply_foca_cache, foca_cache_stats, schemes
from foca_dit.calibration.calibrated import Calibrated
from foca_dit.origin import Origin

GRANULARITIES = ("module", "stack", "output")
# (frames, height, width) of the latent, batch
VIDEOS = (((3, 4, 4), 1), ((5, 4, 4), 1), ((3, 8, 4), 1), ((3, 4, 8), 2), ((3, 4, 4), 1))


@torch.no_grad()
def _video(model, case, size, batch, dtype=torch.float32, steps=10):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, case.shape[0], *size, generator=generator).to(dtype)
    inputs = {
        name: value.to(dtype) if getattr(value, "is_floating_point", bool)() else value
        for name, value in case.inputs(batch, generator).items()
    }
    for now, after in itertools.pairwise(torch.linspace(1, 0, steps + 1).tolist()):
        output = model(
            hidden_states=x, timestep=case.timestep(now, batch), return_dict=False, **inputs
        )[0]
        x = x + (after - now) * output[:, : x.shape[1]]
    return x


@pytest.mark.supports("batch", "resolution", "frames", "dtype")
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["wan", "hunyuan-video"])
def test_batch_resolution_frames_and_dtype_of_a_video_model(name, granularity):
    case, config = BY_NAME[name], FoCaCacheConfig(cache_interval=4, granularity=granularity)
    model = apply_foca_cache(case.model(), config)
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        for size, batch in VIDEOS:
            fresh = apply_foca_cache(case.model().to(dtype), config)
            expected = _video(fresh, case, size, batch, dtype)
            assert torch.equal(_video(model, case, size, batch, dtype), expected)
    assert foca_cache_stats(model)["skipped_steps"] == 2 * len(VIDEOS) * 6


class Stop(Exception):
    pass


@pytest.mark.supports("exception")
@pytest.mark.filterwarnings("ignore:foca_dit. a generation in which nothing was skipped")
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("at", [0, 1, 2, 4, 7])
def test_an_exception_in_a_callback_or_a_step_of_a_pipeline(granularity, at):
    """The pipeline is left in the middle, without its clean-up; the next generation is whole."""

    def fail(pipeline, step, timestep, kwargs):
        if step == at:
            raise Stop
        return kwargs

    config = FoCaCacheConfig(cache_interval=4, granularity=granularity)
    pipeline, fresh = tiny_flux_pipeline(), tiny_flux_pipeline()
    for p in (pipeline, fresh):
        apply_foca_cache(p, config)
    expected = _generate(fresh)
    with pytest.raises(Stop):
        _generate(pipeline, seed=1, callback_on_step_end=fail)
    assert torch.equal(_generate(pipeline), expected)
    handle = pipeline.transformer.norm_out.register_forward_pre_hook(_stop)
    with pytest.raises(Stop):
        _generate(pipeline, seed=2)
    handle.remove()
    assert torch.equal(_generate(pipeline), expected)


def _stop(module, args):
    raise Stop


def test_guidance_scale_classes_and_steps_change():
    config = FoCaCacheConfig(cache_interval=4, granularity="module")
    pipeline = tiny_dit_pipeline()
    apply_foca_cache(pipeline, config)
    for scale, steps in ((4.0, 12), (1.0, 12), (4.0, 9), (2.0, 12), (1.0, 15)):
        fresh = tiny_dit_pipeline()
        apply_foca_cache(fresh, config)
        assert (_dit(pipeline, scale, steps) == _dit(fresh, scale, steps)).all()
    assert foca_cache_stats(pipeline)["skipped_steps"] == 7 + 7 + 5 + 7 + 9


def _another_scheduler(pipeline):
    """The same kind of scheduler, shifted: other noise levels at other timesteps."""
    return type(pipeline.scheduler).from_config(pipeline.scheduler.config, shift=7.0)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_scheduler_that_is_replaced_is_followed(granularity):
    config = FoCaCacheConfig(schedule=Adaptive(budget=6), granularity=granularity)
    pipeline, fresh = tiny_flux_pipeline(), tiny_flux_pipeline()
    apply_foca_cache(pipeline, config)
    before = _generate(pipeline)
    pipeline.scheduler = _another_scheduler(pipeline)
    fresh.scheduler = _another_scheduler(fresh)
    apply_foca_cache(fresh, config)
    image = _generate(pipeline)
    assert torch.equal(image, _generate(fresh))
    assert not torch.equal(image, before)
    for name in ("schedule", "predicted_errors"):
        assert foca_cache_stats(pipeline)[name] == foca_cache_stats(fresh)[name]


def test_a_copied_pipeline_follows_its_own_scheduler():
    config = FoCaCacheConfig(schedule=Adaptive(budget=6))
    pipeline = tiny_flux_pipeline()
    apply_foca_cache(pipeline, config)
    before = _generate(pipeline)
    copied = copy.deepcopy(pipeline)
    copied.scheduler = _another_scheduler(copied)
    assert not torch.equal(_generate(copied), before)
    assert torch.equal(_generate(pipeline), before)


def test_a_cache_does_not_keep_its_pipeline_alive():
    pipeline = tiny_flux_pipeline()
    model = apply_foca_cache(pipeline, FoCaCacheConfig())
    dead = weakref.ref(pipeline)
    del pipeline
    assert dead() is None
    assert foca_cache_stats(model)["full_steps"] == 0


def test_a_plan_refuses_the_scheduler_that_takes_its_place():
    pipeline = tiny_dit_pipeline()
    origin = Origin.of(pipeline.transformer, "stack", pipeline.scheduler)
    scheme = Calibrated(schemes.Reuse(), made_for=origin)
    apply_foca_cache(pipeline, FoCaCacheConfig(scheme=scheme, granularity="stack"))
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="sampler DDIMScheduler, got EulerDiscreteScheduler"):
        _dit(pipeline, 1.0, 12)
