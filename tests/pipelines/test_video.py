"""The life of a video pipeline, Wan's, and its samplers. Images have files of their own."""

import inspect

import diffusers
import pytest
import torch
from cases import BY_NAME
from lanes import PAPER, Lanes, assert_close

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats

WAN = BY_NAME["wan"]
CONFIG = FoCaCacheConfig(cache_interval=4, granularity="module")
STEPS = 10


def _pipeline(cls=diffusers.WanPipeline, transformer=None):
    parts = {"transformer": transformer or WAN.model(), "transformer_2": None}
    if cls is diffusers.WanVideoToVideoPipeline:
        del parts["transformer_2"]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = cls(tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _generate(pipeline, seed=0, strength=None, **options):
    if strength is not None:  # video to video
        options |= {"latents": _noise(1, *WAN.shape, seed=seed), "strength": strength}
    else:
        options |= {"num_frames": 9}
    dtype = pipeline.transformer.dtype
    return pipeline(
        prompt_embeds=_noise(1, 5, 16, seed=seed).to(dtype),
        negative_prompt_embeds=_noise(1, 5, 16, seed=seed + 1).to(dtype),
        guidance_scale=3.0,
        height=32,
        width=32,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **options,
    ).frames


@pytest.mark.supports("strength", "two pipelines")
def test_video_to_video_shares_a_transformer_and_begins_part_way():
    first = _pipeline()
    second = _pipeline(diffusers.WanVideoToVideoPipeline, first.transformer)
    apply_foca_cache(first, CONFIG)
    for strength, seed in ((None, 0), (0.8, 0), (0.5, 1), (None, 1), (0.8, 0)):
        fresh = _pipeline() if strength is None else _pipeline(diffusers.WanVideoToVideoPipeline)
        apply_foca_cache(fresh, CONFIG)
        skipped = foca_cache_stats(first)["skipped_steps"]
        pipeline = first if strength is None else second
        assert torch.equal(_generate(pipeline, seed, strength), _generate(fresh, seed, strength))
        assert foca_cache_stats(first)["skipped_steps"] > skipped


class Stop(Exception):
    pass


@pytest.mark.supports("interrupt", "exception")
@pytest.mark.filterwarnings("ignore:foca_dit. a generation in which nothing was skipped")
@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_callback_that_interrupts_and_one_that_fails(at):
    def interrupt(pipeline, step, timestep, kwargs):
        pipeline._interrupt = step >= at
        return kwargs

    def fail(pipeline, step, timestep, kwargs):
        if step == at:
            raise Stop
        return kwargs

    pipeline, fresh = _pipeline(), _pipeline()
    for p in (pipeline, fresh):
        apply_foca_cache(p, CONFIG)
    expected = _generate(fresh)
    _generate(pipeline, seed=1, callback_on_step_end=interrupt)
    assert torch.equal(_generate(pipeline), expected)
    with pytest.raises(Stop):
        _generate(pipeline, seed=2, callback_on_step_end=fail)
    assert torch.equal(_generate(pipeline), expected)


@pytest.mark.supports("model offload")
def test_model_offload():
    pipeline, fresh = _pipeline(), _pipeline()
    for p in (pipeline, fresh):
        apply_foca_cache(p, CONFIG)
    pipeline.enable_model_cpu_offload(device="cpu")
    for seed in range(2):
        assert_close(_generate(pipeline, seed), _generate(fresh, seed))
    assert foca_cache_stats(pipeline)["skipped_steps"] == 2 * 2 * 6


@pytest.mark.supports("save_pretrained", "to dtype")
def test_saved_and_cast_with_the_cache_applied(tmp_path):
    pipeline = _pipeline()
    expected = _generate(pipeline)
    apply_foca_cache(pipeline, CONFIG)
    cached = _generate(pipeline)
    pipeline.transformer.save_pretrained(tmp_path)
    loaded = _pipeline(transformer=diffusers.WanTransformer3DModel.from_pretrained(tmp_path).eval())
    assert_close(_generate(loaded), expected)
    apply_foca_cache(loaded, CONFIG)
    assert_close(_generate(loaded), cached)
    for dtype in (torch.bfloat16, torch.float32):
        pipeline.transformer.to(dtype)
        fresh = _pipeline()
        fresh.transformer.to(torch.bfloat16).to(dtype)
        apply_foca_cache(fresh, CONFIG)
        assert torch.equal(_generate(pipeline), _generate(fresh))


SAMPLERS = {
    "DDPM": (diffusers.DDPMScheduler, ["first"] * STEPS),
    "Euler ancestral": (diffusers.EulerAncestralDiscreteScheduler, ["first"] * STEPS),
    "Heun": (
        diffusers.FlowMatchHeunDiscreteScheduler,
        ["first", *["first", "second"] * (STEPS - 1)],
    ),
    # Its second evaluations stand at timesteps of their own, in between.
    "number of steps": (diffusers.KDPM2DiscreteScheduler, ["first"] * (2 * STEPS - 1)),
}


@torch.no_grad()
def _sample(pipeline):
    """A loop around a scheduler; what the stochastic ones draw is fixed."""
    scheduler, generator = pipeline.scheduler, torch.Generator().manual_seed(0)
    x, text = _noise(1, *WAN.shape), _noise(1, 5, 16)
    scheduler.set_timesteps(STEPS)
    torch.manual_seed(0)
    for t in scheduler.timesteps:
        scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)(x, t)
        output = pipeline.transformer(
            hidden_states=scaled,
            timestep=t[None].float(),
            encoder_hidden_states=text,
            return_dict=False,
        )[0]
        takes = inspect.signature(scheduler.step).parameters
        noise = {"generator": generator} if "generator" in takes else {}
        x = scheduler.step(output, t, x, **noise).prev_sample
    return x


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.supports(name)) for name in SAMPLERS]
)
def test_samplers(name):
    cls, script = SAMPLERS[name]
    pipeline, literal = _pipeline(), _pipeline()
    for p in (pipeline, literal):
        p.scheduler = cls()
    reference = Lanes(literal.transformer, WAN.wrapped, script)
    apply_foca_cache(pipeline, PAPER)
    assert_close(_sample(pipeline), _sample(literal))
    assert reference.finished()
    stats = foca_cache_stats(pipeline)
    assert stats["collapsed_skips"] == reference.skipped > 0
    assert stats["restarts"] == {}


def test_a_second_transformer_is_named_and_can_be_served():
    """Wan 2.2: the last steps are those of another transformer."""
    pipeline, plain = (
        diffusers.WanPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=None,
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            transformer=WAN.model(),
            transformer_2=WAN.model(seed=1),
            boundary_ratio=0.5,
        )
        for _ in range(2)
    )
    for each in (pipeline, plain):
        each.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match=r"apply_foca_cache\(pipeline.transformer_2, config\)"):
        apply_foca_cache(pipeline, CONFIG)
    apply_foca_cache(pipeline.transformer_2, CONFIG)
    first, second = (_generate(pipeline) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, _generate(plain))
    for model in (pipeline.transformer, pipeline.transformer_2):
        stats = foca_cache_stats(model)
        assert stats["full_steps"] + stats["skipped_steps"] == 2 * 2 * STEPS // 2
        assert stats["skipped_steps"] > 0
