"""Samplers: those that draw noise, evaluate twice at a timestep, or take steps of their own."""

import diffusers
import pytest
import torch
from lanes import DIT, FLUX, PAPER, Lanes, assert_close
from models import call_dit, tiny_dit, tiny_dit_pipeline, tiny_flux_pipeline
from test_guidance import _latents

from foca_dit import Adaptive, FoCaCacheConfig, apply_foca_cache, foca_cache_stats

STEPS = 12
# scheduler -> the lane of every call. Heun's stands twice at every timestep but the first, with
# another sample each time: two lanes, as if they were two branches.
HEUN = ["first", *["first", "second"] * (STEPS - 1)]
ONE = ["first"] * STEPS
FEWER = "a step had fewer calls than the one before"
SCHEDULERS = {
    "DDIMScheduler": ONE,
    "DDPMScheduler": ONE,
    "EulerDiscreteScheduler": ONE,
    "EulerAncestralDiscreteScheduler": ONE,
    "DPMSolverMultistepScheduler": ONE,
    "DPMSolverSinglestepScheduler": ONE,
    "UniPCMultistepScheduler": ONE,
    "DEISMultistepScheduler": ONE,
    "LCMScheduler": ONE,
    "HeunDiscreteScheduler": HEUN,
    # Their second evaluations stand at timesteps of their own, in between.
    "KDPM2DiscreteScheduler": ["first"] * (2 * STEPS - 1),
    "KDPM2AncestralDiscreteScheduler": ["first"] * (2 * STEPS - 1),
    # Evaluates twice at its second timestep only. What was one more branch there is missing at the
    # third, and that looks like guidance switched off, and starts anew.
    "PNDMScheduler": ["a", "a", "b", "a", *["c"] * (STEPS - 3)],
}


def _pipeline(name, **options):
    pipeline = tiny_dit_pipeline()
    pipeline.scheduler = getattr(diffusers, name).from_config(
        {"beta_schedule": "linear", "skip_prk_steps": True, **options}
    )
    return pipeline


def _run(pipeline, steps=STEPS, seed=0):
    torch.manual_seed(seed)  # DiTPipeline gives its generator to no stochastic sampler

    def run(pipeline):
        pipeline(
            class_labels=[3],
            guidance_scale=1.0,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        )

    return _latents(pipeline, run)


SHOWN = {
    "DDPMScheduler": "DDPM",
    "EulerAncestralDiscreteScheduler": "Euler ancestral",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2DiscreteScheduler": "number of steps",
    "PNDMScheduler": "number of steps",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.supports(SHOWN[name])] if name in SHOWN else [])
        for name in SCHEDULERS
    ],
)
def test_a_scheduler_of_diffusers(name):
    pipeline, literal = _pipeline(name), _pipeline(name)
    reference = Lanes(literal.transformer, DIT, SCHEDULERS[name])
    apply_foca_cache(pipeline, PAPER)
    assert_close(_run(pipeline), _run(literal))
    stats = foca_cache_stats(pipeline)
    assert reference.finished()
    assert stats["collapsed_skips"] == reference.skipped > 0
    assert stats["restarts"] == ({FEWER: 1} if name == "PNDMScheduler" else {})


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_noise_of_a_stochastic_sampler_is_not_taken_for_another_generation(name):
    """Four coarse steps jump farther than independent samples lie apart; the scheduler vouches."""
    pipeline = _pipeline(name)
    apply_foca_cache(pipeline, FoCaCacheConfig(cache_interval=4, disable_cache_before_step=1))
    for seed in range(3):
        _run(pipeline, steps=8, seed=seed)
    stats = foca_cache_stats(pipeline)
    assert (stats["full_steps"], stats["skipped_steps"]) == (3 * 2, 3 * 6)
    assert stats["restarts"] == {"the scheduler was set anew": 2}


def test_a_new_generation_of_a_stochastic_sampler_is_told_by_the_schedulers_new_table():
    """A run given up and begun again one step further on: the timestep alone would fit."""
    pipeline, fresh = _pipeline("DDPMScheduler"), _pipeline("DDPMScheduler")
    for p in (pipeline, fresh):
        apply_foca_cache(p, PAPER)
    samples = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def calls(p, x, first, last):
        p.scheduler.set_timesteps(STEPS)
        label = torch.tensor([1])
        return [p.transformer(x, t[None], label).sample for t in p.scheduler.timesteps[first:last]]

    calls(pipeline, samples[0], 0, 5)
    actual = calls(pipeline, samples[1], 5, STEPS)
    expected = calls(fresh, samples[1], 5, STEPS)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected, strict=True))
    assert foca_cache_stats(pipeline)["restarts"] == {"the scheduler was set anew": 1}


@torch.no_grad()
def _flux(pipeline, branches=("cond",)):
    """FLUX in a loop around a scheduler, as pipelines have it; FluxPipeline refuses Heun's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 6, 4, generator=generator)
    texts = dict(zip(branches, torch.randn(2, 1, 5, 32, generator=generator), strict=False))
    pipeline.scheduler.set_timesteps(STEPS)
    for t in pipeline.scheduler.timesteps:
        outputs = []
        for name, text in texts.items():
            with pipeline.transformer.cache_context(name):
                outputs += pipeline.transformer(
                    hidden_states=x,
                    encoder_hidden_states=text,
                    pooled_projections=text[:, 0],
                    timestep=t[None] / 1000,
                    img_ids=torch.zeros(6, 3),
                    txt_ids=torch.zeros(5, 3),
                    return_dict=False,
                )
        x = pipeline.scheduler.step(sum(outputs) / len(outputs), t, x).prev_sample
    pipeline.maybe_free_model_hooks()
    return x


def _heun_pipeline():
    pipeline = tiny_flux_pipeline()
    pipeline.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    return pipeline


@pytest.mark.supports("Heun")
@pytest.mark.parametrize("branches", [("cond",), ("cond", "uncond")], ids=["one", "two"])
def test_heun_of_flow_matching(branches):
    """Its repeated timesteps look like guidance, and with guidance there are four calls at each."""
    script = [name + " 1" for name in branches]
    for _ in range(STEPS - 1):
        script += [name + stage for stage in (" 1", " 2") for name in branches]
    pipeline, literal = _heun_pipeline(), _heun_pipeline()
    reference = Lanes(literal.transformer, FLUX, script)
    apply_foca_cache(pipeline, PAPER)
    assert_close(_flux(pipeline, branches), _flux(literal, branches))
    stats = foca_cache_stats(pipeline)
    assert reference.finished()
    assert stats["collapsed_skips"] == reference.skipped
    assert stats["restarts"] == {}


def test_heun_with_an_adaptive_interval():
    pipeline = _heun_pipeline()
    apply_foca_cache(pipeline, FoCaCacheConfig(schedule=Adaptive(tol=1.0), granularity="stack"))
    first = _flux(pipeline)
    stats = foca_cache_stats(pipeline)
    assert stats["skipped_steps"] > stats["full_steps"]
    assert stats["restarts"] == {}
    assert torch.equal(_flux(pipeline), first)


def test_heun_in_a_loop_without_a_scheduler_is_computed_in_full():
    """Nothing but the scheduler could tell a second evaluation from a generation begun anew."""
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=4))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(8):
        for sample in (x, x + 0.01):
            t = [1000.0 - 100 * step]
            assert torch.equal(call_dit(model, t, sample)[0], call_dit(tiny_dit(), t, sample)[0])
        x = 0.95 * x
    assert foca_cache_stats(model)["restarts"]["the same timestep came with another sample"] > 0
