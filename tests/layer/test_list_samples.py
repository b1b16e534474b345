"""A transformer that is called with a list of samples and returns one: Z-Image, in its pipeline."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from generic_cases import GENERIC, build
from literal import LiteralModule

from foca_dit import (
    FoCaCacheConfig,
    apply_foca_cache,
    foca_cache_stats,
    plan_foca_cache,
    remove_foca_cache,
)
from foca_dit.adapters.hooks import find_hook

NAME = "ZImageTransformer2DModel"
CALL = GENERIC[NAME][1]
STEPS = 10
FULL_STEPS = (0, 1, 2, 6)  # of interval 4
# Two requests: another prompt, size and number of images. Guidance runs as one batch.
REQUESTS = [(0, 16, 1), (1, 24, 2)]
granularities = pytest.mark.parametrize("granularity", ["stack", "output"])


def _pipeline():
    pipeline = ZImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, build(NAME))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _generate(pipeline, seed, size, images, guidance=3.0):
    generator = torch.Generator().manual_seed(seed)
    # Captions of several lengths, so that the shorter ones are padded in the blocks.
    texts = [[torch.randn(n, 16, generator=generator)] * images for n in (40 - 8 * seed, 5)]
    return pipeline(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        guidance_scale=guidance,
        height=8 * size,
        width=8 * size,
        num_inference_steps=STEPS,
        generator=generator,
        output_type="latent",
    ).images


class _Stack(torch.nn.Module):
    """What all blocks add to the stream."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def forward(self, x, *conditioning):
        y = x
        for block in self.blocks:
            y = block(y, *conditioning)
        return y - x


class _Residual(torch.nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x, *conditioning):
        return x + self.change(x, *conditioning)


def _put_literal(model, granularity):
    """The paper's recursion around the stack, or around the model, without the cache."""
    if granularity == "stack":
        change = _Stack(model.layers)
        LiteralModule(change, FULL_STEPS)
        model.layers = torch.nn.ModuleList([_Residual(change)])
        return
    run, whole = model.forward, torch.nn.Module()
    whole.forward = lambda *args, **kwargs: torch.stack(run(*args, **kwargs)[0])
    LiteralModule(whole, FULL_STEPS)
    model.forward = lambda *args, **kwargs: (list(whole.forward(*args, **kwargs)),)


@pytest.mark.supports("removal", "batch of two", "resolution", "batch")
@granularities
def test_the_pipeline_equals_the_literal_recursion_request_by_request(granularity):
    pipeline = _pipeline()
    uncached = [_generate(pipeline, *request) for request in REQUESTS]
    config = FoCaCacheConfig(preset="paper", granularity=granularity, cache_interval=4)
    apply_foca_cache(pipeline, config)
    for request, full in zip(REQUESTS, uncached, strict=True):
        literal = _pipeline()
        _put_literal(literal.transformer, granularity)
        expected = _generate(literal, *request)
        actual = _generate(pipeline, *request)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        assert (actual - full).abs().max() > 1e-3  # the recursion is seen
    stats = foca_cache_stats(pipeline)
    assert (stats["full_steps"], stats["skipped_steps"]) == (8, 12)
    assert not stats["bypasses"]
    remove_foca_cache(pipeline)
    for request, full in zip(REQUESTS, uncached, strict=True):
        assert torch.equal(_generate(pipeline, *request), full)


def test_time_runs_from_noise_at_0_to_the_data():
    pipeline = _pipeline()
    apply_foca_cache(pipeline, FoCaCacheConfig(tol=0.05))
    full = _generate(_pipeline(), *REQUESTS[0], guidance=0.0)
    actual = _generate(pipeline, *REQUESTS[0], guidance=0.0)
    (branch,) = find_hook(pipeline.transformer).state.branches.values()
    sigmas = pipeline.scheduler.sigmas[:-1].numpy()
    expected = np.log((1 - sigmas + 1e-3) / (sigmas + 1e-3))
    np.testing.assert_allclose(branch.trajectory.tau, expected, atol=1e-3)
    stats = foca_cache_stats(pipeline)
    assert stats["skipped_steps"] > 0
    assert stats["time_fallbacks"] == stats["restarts"] == {}
    assert (actual - full).abs().max() < 0.1 * full.abs().max()


@torch.no_grad()
@granularities
def test_a_forecast_is_returned_as_the_model_returns_it(granularity):
    model = build(NAME)
    config = FoCaCacheConfig(granularity=granularity, cache_interval=5, disable_cache_before_step=2)
    apply_foca_cache(model, config)
    for step, as_class in enumerate([False, False, False, True]):
        output = model(t=torch.tensor([0.1 + 0.01 * step]), return_dict=as_class, **CALL)
        samples = output.sample if as_class else output[0]
        assert isinstance(output, tuple) != as_class
        assert isinstance(samples, list)
        assert [s.shape for s in samples] == [x.shape for x in CALL["x"]]
    assert foca_cache_stats(model)["skipped_steps"] == 2


RAGGED = {"x": [torch.ones(4, 1, 8, 8), torch.ones(4, 1, 8, 12)], "cap_feats": CALL["cap_feats"]}
NESTED = {
    "x": [[x] for x in CALL["x"]],
    "cap_feats": [[text, text[:3]] for text in CALL["cap_feats"]],
    "siglip_feats": [None, None],
    "image_noise_mask": [[1], [1]],
}


@torch.no_grad()
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (RAGGED, "the samples in the list 'x' differ in shape"),
        (NESTED, "the call does not pass a tensor, or a list of tensors, as 'x'"),
    ],
)
@granularities
def test_lists_that_are_no_batch_run_uncached_and_say_so(granularity, call, said):
    model, times = build(NAME), [0.1 + 0.01 * step for step in range(6)]

    def outputs():
        steps = [model(t=torch.tensor([t]), return_dict=False, **call)[0] for t in times]
        return [sample for step in steps for sample in step]

    expected = outputs()
    apply_foca_cache(model, FoCaCacheConfig(granularity=granularity, cache_interval=5))
    with pytest.warns(UserWarning, match=f"runs uncached: {said}"):
        actual = outputs()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    stats = foca_cache_stats(model)
    assert stats["full_steps"] + stats["skipped_steps"] == 0
    assert list(stats["bypasses"].values()) == [6]


@torch.no_grad()
@granularities
def test_a_run_holds_what_was_planned(granularity):
    model, config = build(NAME), FoCaCacheConfig(granularity=granularity, cache_interval=5)
    plan = plan_foca_cache(model, {"t": torch.tensor([0.5]), **CALL}, config)
    apply_foca_cache(model, config)
    for step in range(6):
        model(t=torch.tensor([0.1 + 0.01 * step]), **CALL)
    assert foca_cache_stats(model)["nbytes"] == plan.chosen.nbytes
