"""A generation that was given up part-way, then another one that its timesteps could continue."""

import diffusers
import pytest
import torch
from cases import BY_NAME
from models import flux_prompt, tiny_flux, tiny_flux_pipeline
from test_persistence import _generate
from test_threads_and_sharing import _img2img as _same_noise
from test_threads_and_sharing import _sharing

from foca_dit import Adaptive, FoCaCacheConfig, apply_foca_cache, foca_cache_stats, reasons

GRANULARITIES = ("module", "stack", "output")
CONFIGS = {
    "interval": FoCaCacheConfig(cache_interval=4),
    "adaptive": FoCaCacheConfig(schedule=Adaptive(budget=4)),
}


class Stop(Exception):
    pass


def _img2img(pipeline, prompt, strength, stop_at=None):
    """The same picture and noise at every call, so that samples alone tell nothing apart."""

    def stop(pipe, step, timestep, arguments):
        if step == stop_at:
            raise Stop
        return arguments

    return _same_noise(pipeline, prompt=prompt, strength=strength, callback_on_step_end=stop)


TOLD_BY = {
    "its scheduler": (reasons.SET_ANEW, lambda pipeline: pipeline),
    "the prompt": (reasons.RECONDITIONED, lambda pipeline: pipeline.transformer),
}


@pytest.mark.supports("exception")
@pytest.mark.parametrize(("reason", "cached"), TOLD_BY.values(), ids=TOLD_BY)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(("stop_at", "strength"), [(3, 0.4), (3, 0.5), (5, 0.5)])
def test_an_exception_in_a_callback_then_another_prompt_further_down(
    config, stop_at, strength, reason, cached
):
    pipeline, fresh = (_sharing(tiny_flux_pipeline()) for _ in range(2))
    for each in (pipeline, fresh):
        apply_foca_cache(cached(each), config)
    with pytest.raises(Stop):
        _img2img(pipeline, 9, 0.8, stop_at)
    before = foca_cache_stats(pipeline)["full_steps"]
    assert torch.equal(_img2img(pipeline, 0, strength), _img2img(fresh, 0, strength))
    assert (
        foca_cache_stats(pipeline)["full_steps"] - before == foca_cache_stats(fresh)["full_steps"]
    )
    assert foca_cache_stats(pipeline)["restarts"] in ({reason: 1}, {reasons.TURNED_BACK: 1})


def _sd3():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,), latent_channels=4, norm_num_groups=2, sample_size=32
    )
    vae.register_to_config(shift_factor=0.0)
    texts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipeline = diffusers.StableDiffusion3Img2ImgPipeline(
        transformer=BY_NAME["sd3"].model(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        **dict.fromkeys((*texts, "text_encoder_3", "tokenizer_3")),
    )
    pipeline.set_progress_bar_config(disable=True)
    return apply_foca_cache(pipeline, CONFIGS["interval"]), pipeline


@pytest.mark.supports("interrupt")
def test_an_interrupted_pipeline_whose_model_is_not_told_of_its_end():
    """SD3's transformer has no `CacheMixin`: nothing resets it when the pipeline returns."""

    def run(pipeline, scale, strength, interrupt_at=None):
        def interrupt(pipe, step, timestep, arguments):
            pipe._interrupt = interrupt_at is not None and step >= interrupt_at
            return arguments

        generator = torch.Generator().manual_seed(0)
        noise = torch.Generator().manual_seed(1)
        return pipeline(
            prompt_embeds=scale * torch.randn(1, 5, 16, generator=noise),
            pooled_prompt_embeds=scale * torch.randn(1, 16, generator=noise),
            image=torch.rand(1, 3, 8, 8, generator=generator),
            strength=strength,
            guidance_scale=1.0,
            num_inference_steps=20,
            generator=generator,
            output_type="latent",
            callback_on_step_end=interrupt,
        ).images

    (model, pipeline), (other, fresh) = _sd3(), _sd3()
    run(pipeline, 2.0, 0.8, interrupt_at=3)
    before = foca_cache_stats(model)["full_steps"]
    assert torch.equal(run(pipeline, 1.0, 0.4), run(fresh, 1.0, 0.4))
    assert foca_cache_stats(model)["full_steps"] - before == foca_cache_stats(other)["full_steps"]


def _fail_in(module):
    def fail(*_):
        raise Stop

    return module.register_forward_pre_hook(fail)


@pytest.mark.supports("exception")
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("scheme", ["foca", "newton"])
def test_a_first_step_that_fails_in_the_model_then_another_prompt(granularity, scheme):
    """It may have folded some features in already; the noise is the same."""
    config = FoCaCacheConfig(
        cache_interval=4, granularity=granularity, disable_cache_before_step=1, scheme=scheme
    )
    pipeline, fresh = tiny_flux_pipeline(), tiny_flux_pipeline()
    for each in (pipeline, fresh):
        apply_foca_cache(each, config)
    handle = _fail_in(pipeline.transformer.norm_out)
    with pytest.raises(Stop):
        pipeline(
            **flux_prompt(7),
            height=16,
            width=16,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(0),
        )
    handle.remove()
    assert torch.equal(_generate(pipeline), _generate(fresh))


@torch.no_grad()
@pytest.mark.parametrize(
    ("prompt", "reason"), [(9, reasons.RECONDITIONED), (1, reasons.NEVER_BEGUN)]
)
def test_so_it_is_with_a_bare_model(prompt, reason):
    config = FoCaCacheConfig(cache_interval=4, disable_cache_before_step=1, granularity="module")
    model, fresh = (apply_foca_cache(tiny_flux(), config) for _ in range(2))
    x = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    fixed = {"img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3)}

    def step(model, prompt, t):
        text = torch.full((1, 5, 32), float(prompt))
        pooled = torch.full((1, 32), float(prompt))
        return model(x, text, pooled, timestep=torch.tensor([t]), **fixed).sample

    handle = _fail_in(model.norm_out)
    with pytest.raises(Stop):
        step(model, prompt, 1.0)
    handle.remove()
    for t in (1.0, 0.9, 0.8, 0.7):
        assert torch.equal(step(model, 1, t), step(fresh, 1, t))
    assert foca_cache_stats(model)["restarts"] == {reason: 1}


@torch.no_grad()
def test_a_second_branch_that_fails_at_the_first_step_and_is_repeated():
    """Then the first branch stays the first one."""
    config = FoCaCacheConfig(cache_interval=4, granularity="module")
    model, fresh = (apply_foca_cache(tiny_flux(), config) for _ in range(2))
    fixed = {"img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3)}
    x = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))

    def call(model, prompt, t):
        text, pooled = torch.full((1, 5, 32), prompt), torch.full((1, 32), prompt)
        return model(x, text, pooled, timestep=torch.tensor([t]), **fixed).sample

    call(model, 1.0, 1.0)
    handle = _fail_in(model.norm_out)
    with pytest.raises(Stop):
        call(model, -1.0, 1.0)
    handle.remove()
    call(model, -1.0, 1.0)
    for prompt in (1.0, -1.0):
        call(fresh, prompt, 1.0)
    for t in (0.9, 0.8, 0.7, 0.6):
        for prompt in (1.0, -1.0):
            assert torch.equal(call(model, prompt, t), call(fresh, prompt, t))
    assert foca_cache_stats(model)["restarts"] == {}
