"""Two pipelines on one transformer, two threads, requests in turn."""

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from lanes import FLUX, PAPER, Lanes, assert_close, cases
from models import draw, draw_flux, flux_prompt, tiny_dit, tiny_flux, tiny_flux_pipeline
from test_persistence import _generate

from foca_dit import (
    CacheState,
    FoCaCacheConfig,
    apply_foca_cache,
    cache_scope,
    foca_cache_stats,
    remove_foca_cache,
)

CONFIG = FoCaCacheConfig(cache_interval=4, granularity="stack")


def _sharing(first):
    second = diffusers.FluxImg2ImgPipeline(**first.components)
    second.vae.register_to_config(shift_factor=0.0)
    second.set_progress_bar_config(disable=True)
    return second


def _img2img(pipeline, seed=0, strength=0.8, prompt=None, **options):
    generator = torch.Generator().manual_seed(seed)
    return pipeline(
        **flux_prompt(seed if prompt is None else prompt),
        image=torch.rand(1, 3, 16, 16, generator=generator),
        strength=strength,
        height=16,
        width=16,
        num_inference_steps=12,
        generator=generator,
        output_type="latent",
        **options,
    ).images


@pytest.mark.supports("two pipelines")
def test_two_pipelines_share_a_transformer():
    """One cache serves both, in any order, each generation as from a fresh cache."""
    first = tiny_flux_pipeline()
    second = _sharing(first)
    apply_foca_cache(first, CONFIG)
    for run, pipeline, seed in (
        (_generate, first, 0),
        (_img2img, second, 0),
        (_img2img, second, 1),
        (_generate, first, 1),
        (_img2img, second, 0),
    ):
        fresh = tiny_flux_pipeline()
        other = _sharing(fresh) if pipeline is second else fresh
        apply_foca_cache(other, CONFIG)
        skipped = foca_cache_stats(pipeline)["skipped_steps"]
        assert torch.equal(run(pipeline, seed), run(other, seed))
        assert foca_cache_stats(pipeline)["skipped_steps"] > skipped
    with pytest.raises(ValueError, match="already has a cache"):
        apply_foca_cache(second, CONFIG)


@pytest.mark.supports("strength")
@pytest.mark.parametrize("strengths", [(0.8, 0.5, 1.0), (0.5, 0.5)])
def test_strength_changes_between_generations(strengths):
    """img2img begins part-way: the first steps it does run are its warm-up."""
    pipeline = _sharing(tiny_flux_pipeline())
    literal = _sharing(tiny_flux_pipeline())
    script = [(i, s) for i, s in enumerate(strengths) for _ in range(math.ceil(12 * s))]
    reference = Lanes(literal.transformer, FLUX, script)
    apply_foca_cache(pipeline, PAPER)
    for seed, strength in enumerate(strengths):
        assert_close(_img2img(pipeline, seed, strength), _img2img(literal, seed, strength))
    assert reference.finished()
    assert foca_cache_stats(pipeline)["collapsed_skips"] == reference.skipped


@pytest.mark.supports("interleaved", "two threads")
@cases()
def test_requests_in_turn_each_with_two_branches(case):
    """Call by call, on one model, with `cache_scope`: equal to two runs of their own."""
    model = apply_foca_cache(case.model(), CONFIG)
    states = [CacheState(CONFIG) for _ in range(2)]
    turn = threading.Barrier(2)

    class Scoped(torch.nn.Module):
        """Enters the request's scope anew at every call, branches by turns."""

        def __init__(self, state):
            super().__init__()
            self.state, self.branches = state, itertools.cycle(("cond", "uncond"))

        def forward(self, **kwargs):
            turn.wait(timeout=10)
            with cache_scope(model, self.state, branch=next(self.branches)):
                return model(**kwargs)

    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(case.draw, Scoped(state), seed=seed, branches=2, dtype=torch.float32)
            for seed, state in enumerate(states)
        ]
        actual = [run.result() for run in runs]
    for seed, (state, image) in enumerate(zip(states, actual, strict=True)):
        fresh = apply_foca_cache(case.model(), CONFIG)
        assert torch.equal(image, case.draw(fresh, seed=seed, branches=2))
        assert foca_cache_stats(model, state)["skipped_steps"] == 2 * 7


@pytest.mark.supports("two threads")
@pytest.mark.parametrize("same_noise", [False, True])
@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@cases()
def test_two_threads_without_a_scope(case, granularity, same_noise):
    """Every thread has a state of its own, even where noise and timesteps are alike."""
    config = FoCaCacheConfig(cache_interval=4, granularity=granularity)
    model, step = apply_foca_cache(case.model(), config), threading.Barrier(2)
    handle = model.register_forward_pre_hook(lambda *_: (step.wait(timeout=10), None)[1])
    seeds = (0, 0) if same_noise else (0, 1)
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(case.draw, model, seed=seed, branches=branches, steps=12 // branches)
            for seed, branches in zip(seeds, (1, 2), strict=True)
        ]
        actual = [run.result() for run in runs]
        assert foca_cache_stats(model)["nbytes"] > 0
    handle.remove()
    for image, seed, branches in zip(actual, seeds, (1, 2), strict=True):
        fresh = apply_foca_cache(case.model(), config)
        assert torch.equal(
            image, case.draw(fresh, seed=seed, branches=branches, steps=12 // branches)
        )
    assert foca_cache_stats(model)["skipped_steps"] == 7 + 2 * 3
    assert foca_cache_stats(model)["restarts"] == {}


@pytest.mark.supports("two threads")
def test_two_threads_with_named_branches():
    """diffusers keeps the name that `cache_context` sets on the model: ours is the thread's own."""
    model, step = apply_foca_cache(tiny_flux(), CONFIG), threading.Barrier(2)
    handle = model.register_forward_pre_hook(lambda *_: (step.wait(timeout=10), None)[1])

    class Named(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.names = inner, itertools.cycle(("cond", "uncond"))

        def forward(self, **kwargs):
            with self.inner.cache_context(next(self.names)):
                return self.inner(**kwargs)

    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(draw_flux, Named(model), seed=seed, branches=2, steps=8) for seed in (0, 1)
        ]
        actual = [run.result() for run in runs]
    handle.remove()
    for seed, image in enumerate(actual):
        fresh = apply_foca_cache(tiny_flux(), CONFIG)
        assert torch.equal(image, draw_flux(Named(fresh), seed=seed, branches=2, steps=8))
    assert foca_cache_stats(model)["restarts"] == {}


def test_a_threads_histories_go_with_it_and_with_the_cache():
    model = apply_foca_cache(tiny_dit(), CONFIG)
    thread = threading.Thread(target=draw, args=(model,))
    thread.start()
    thread.join()
    assert foca_cache_stats(model)["nbytes"] == 0
    assert foca_cache_stats(model)["skipped_steps"] == 7
    with ThreadPoolExecutor(1) as pool:
        pool.submit(draw, model).result()
        assert foca_cache_stats(model)["nbytes"] > 0
        remove_foca_cache(model)
        assert torch.equal(pool.submit(draw, model).result(), draw(tiny_dit()))
