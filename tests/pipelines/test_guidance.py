"""Guidance in all its forms: the cache finds the branches by itself, or is told by diffusers."""

import contextlib
import itertools

import pytest
import torch
from diffusers import FluxTransformer2DModel
from lanes import DIT, FLUX, PAPER, Lanes, assert_close, cases
from models import flux_prompt, tiny_dit_pipeline, tiny_flux_pipeline

from foca_dit import apply_foca_cache, foca_cache_stats, reasons

STEPS = 12


def _dit(pipeline, scale, steps=STEPS):
    return pipeline(
        class_labels=[3],
        guidance_scale=scale,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images


def _latents(pipeline, run):
    """The latents of the last step of a pipeline that returns only pictures."""
    kept = []
    step = pipeline.scheduler.step

    def keep(*args, **kwargs):
        output = step(*args, **kwargs)
        kept[:] = [output.prev_sample]
        return output

    pipeline.scheduler.step = keep
    run(pipeline)
    pipeline.scheduler.step = step
    return kept[0]


@pytest.mark.supports("batch of two")
def test_one_batch_of_two():
    """DiTPipeline stacks the two branches into one batch: one lane, twice the batch."""
    pipeline, literal = tiny_dit_pipeline(), tiny_dit_pipeline()
    reference = Lanes(literal.transformer, DIT, ["both"] * STEPS)
    apply_foca_cache(pipeline, PAPER)
    run = lambda p: _dit(p, 4.0)  # noqa: E731
    assert_close(_latents(pipeline, run), _latents(literal, run))
    assert reference.finished()
    assert foca_cache_stats(pipeline)["collapsed_skips"] == reference.skipped


@pytest.mark.parametrize(
    "branches",
    [
        pytest.param(2, marks=pytest.mark.supports("two calls")),
        pytest.param(3, marks=pytest.mark.supports("three branches")),
    ],
)
@cases("flux", "wan", "hunyuan-video")
def test_two_and_three_calls_a_step(case, branches):
    """Nothing but the repeated timestep and the equal sample tells the branches apart."""
    model, literal = case.model(), case.model()
    reference = Lanes(literal, case.wrapped, list(range(branches)) * STEPS)
    apply_foca_cache(model, PAPER)
    assert_close(case.draw(model, branches=branches), case.draw(literal, branches=branches))
    stats = foca_cache_stats(model)
    assert stats["collapsed_skips"] == reference.skipped
    assert stats["restarts"] == {}


def _true_guidance(pipeline, scale=3.0, steps=STEPS, **options):
    negative = {f"negative_{key}": value for key, value in flux_prompt(1).items()}
    return pipeline(
        **flux_prompt(0),
        **negative,
        true_cfg_scale=scale,
        height=16,
        width=16,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **options,
    ).images


@pytest.mark.supports("two calls")
def test_two_calls_a_step_named_by_the_pipeline():
    """FluxPipeline's `true_cfg_scale` opens diffusers' cache_context around each call."""
    pipeline, literal = tiny_flux_pipeline(), tiny_flux_pipeline()
    reference = Lanes(literal.transformer, FLUX, ["cond", "uncond"] * STEPS)
    apply_foca_cache(pipeline, PAPER)
    assert_close(_true_guidance(pipeline), _true_guidance(literal))
    assert reference.finished()
    assert foca_cache_stats(pipeline)["collapsed_skips"] == reference.skipped


@torch.no_grad()
def _contexts(case, model, names_of_step, around=lambda name: contextlib.nullcontext()):
    """A loop in which every step names its branches, as a guider of diffusers does.

    What `around` returns for a name is open around the branch's call.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *case.shape, generator=generator)
    calls = {name: case.inputs(1, generator) for name in "abc"}
    times = torch.linspace(1, 0, len(names_of_step) + 1).tolist()
    for (now, after), names in zip(itertools.pairwise(times), names_of_step, strict=True):
        velocity = 0.0
        for name in names:
            with model.cache_context(name), around(name):
                velocity = velocity + case.velocity(model, x, now, calls[name]) / len(names)
        x = x + (after - now) * velocity
    return x


@pytest.mark.parametrize(
    ("steps", "lanes"),
    [
        # Switched off after 5 steps: the other branch does not notice.
        pytest.param(
            ["ab"] * 5 + ["a"] * 9,
            ["a", "b"] * 5 + ["a"] * 9,
            marks=pytest.mark.supports("switched off"),
        ),
        # On again: the branch that was left out starts anew, it would be stale.
        (["ab"] * 5 + ["a"] * 2 + ["ab"] * 7, ["a", "b"] * 5 + ["a"] * 2 + ["a", "b again"] * 7),
        # On late (a guidance interval): the new branch has its own steps.
        (["a"] * 5 + ["ab"] * 9, ["a"] * 5 + ["a", "b"] * 9),
        (["abc"] * 12, ["a", "b", "c"] * 12),
    ],
    ids=["off", "off-and-on", "on-late", "three"],
)
@cases()
def test_named_branches_switched_part_way(case, steps, lanes):
    model, literal = case.model(), case.model()
    reference = Lanes(literal, case.wrapped, lanes)
    apply_foca_cache(model, PAPER)
    assert_close(_contexts(case, model, steps), _contexts(case, literal, steps))
    assert foca_cache_stats(model)["collapsed_skips"] == reference.skipped


@torch.no_grad()
@cases()
def test_unnamed_branches_that_come_late_are_computed_at_the_same_steps(case):
    """A guidance interval. Out of step, one branch's forecast is taken from the other's features,
    and guidance multiplies the difference.
    """

    def run(model):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, *case.shape, generator=generator)
        calls = [case.inputs(1, generator) for _ in range(2)]
        for step, (now, after) in enumerate(itertools.pairwise(torch.linspace(1, 0, 15).tolist())):
            given = calls if step >= 5 else calls[:1]
            x = x + (after - now) * sum(case.velocity(model, x, now, c) for c in given) / len(given)
        return x

    model, literal = case.model(), case.model()
    lanes = ["alone"] * 5 + ["alone", "once"] + ["first", "second"] * 8
    reference = Lanes(literal, case.wrapped, lanes)
    apply_foca_cache(model, PAPER)
    assert_close(run(model), run(literal))
    stats = foca_cache_stats(model)
    assert stats["collapsed_skips"] == reference.skipped
    assert stats["restarts"] == {reasons.MORE_CALLS: 1}


@pytest.mark.supports("switched off")
def test_a_batch_of_two_that_becomes_one_part_way():
    """The shape changes, so the rest is computed as from a fresh cache."""
    from models import tiny_dit

    @torch.no_grad()
    def run(model):
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        outputs = []
        for step in range(16):
            labels = torch.tensor([3, 10] if step < 6 else [3])
            t = torch.full((len(labels),), 1000.0 - 50 * step)
            outputs.append(model(x.expand(len(labels), -1, -1, -1), t, labels).sample)
            x = x - 0.05 * outputs[-1][:1]
        return torch.cat(outputs)

    model, literal = tiny_dit(), tiny_dit()
    reference = Lanes(literal, DIT, ["two"] * 6 + ["one"] * 10)
    apply_foca_cache(model, PAPER)
    assert_close(run(model), run(literal))
    stats = foca_cache_stats(model)
    assert stats["collapsed_skips"] == reference.skipped
    assert list(stats["restarts"]) == ["the sample's shape, dtype or device changed"]


@pytest.mark.supports("distilled")
def test_distilled():
    """FLUX.1-dev's guidance is an embedding beside the timestep's: it is part of every gate."""

    def build():
        pipeline = tiny_flux_pipeline()
        torch.manual_seed(0)
        config = {**pipeline.transformer.config, "guidance_embeds": True}
        del config["_use_default_values"]
        pipeline.transformer = FluxTransformer2DModel.from_config(config).eval()
        pipeline.transformer.time_text_embed.guidance_embedder.linear_2.weight.data.mul_(30)
        return pipeline

    def run(pipeline, scale):
        return pipeline(
            **flux_prompt(0),
            guidance_scale=scale,
            height=16,
            width=16,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images

    pipeline, literal = build(), build()
    reference = Lanes(literal.transformer, FLUX, ["first"] * STEPS + ["second"] * STEPS)
    apply_foca_cache(pipeline, PAPER)
    results = [run(pipeline, scale) for scale in (1.5, 60.0)]
    for result, scale in zip(results, (1.5, 60.0), strict=True):
        assert_close(result, run(literal, scale))
    assert not torch.allclose(*results, atol=1e-4)
    assert foca_cache_stats(pipeline)["collapsed_skips"] == reference.skipped
