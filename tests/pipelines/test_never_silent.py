"""A generation in which nothing was skipped warns once and says why."""

import warnings

import pytest
import torch
from models import call_dit, draw, tiny_dit, tiny_flux_pipeline
from test_persistence import _generate
from test_schedulers import STEPS, _pipeline, _run

from foca_dit import (
    Adaptive,
    CacheState,
    FoCaCacheConfig,
    FullSteps,
    apply_foca_cache,
    cache_scope,
    foca_cache_stats,
    remove_foca_cache,
)

NOTHING = "a generation in which nothing was skipped: "


def _said(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if "nothing was skipped" in str(w.message)]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (FoCaCacheConfig(schedule=FullSteps(range(10))), "the schedule computes each of its 10"),
        (FoCaCacheConfig(schedule=Adaptive(tol=1e-9)), "none of its 10 steps was predicted to"),
        (FoCaCacheConfig(cache_interval=4, disable_cache_before_step=10), "each of its 10 steps"),
    ],
)
def test_at_the_end_of_a_pipeline_once(config, why):
    pipeline = tiny_flux_pipeline()
    apply_foca_cache(pipeline, config)
    (message,) = _said(lambda: _generate(pipeline))
    assert NOTHING + why in message or (NOTHING in message and why in message)
    assert _said(lambda: _generate(pipeline)) == []  # said once
    assert foca_cache_stats(pipeline)["full_steps"] == 20


def test_a_pipeline_that_skips_says_nothing():
    pipeline = tiny_flux_pipeline()
    apply_foca_cache(pipeline, FoCaCacheConfig(cache_interval=4))
    assert _said(lambda: [_generate(pipeline, seed) for seed in range(2)]) == []


def test_an_interval_of_1_is_what_was_asked_for():
    pipeline = tiny_flux_pipeline()
    apply_foca_cache(pipeline, FoCaCacheConfig(cache_interval=1))
    assert _said(lambda: _generate(pipeline)) == []


def test_few_steps():
    """Distilled models take as many steps as the warm-up has."""
    pipeline = _pipeline("DDIMScheduler")
    apply_foca_cache(pipeline, FoCaCacheConfig(cache_interval=4))
    said = _said(lambda: [_run(pipeline, steps=3) for _ in range(3)])
    assert len(said) == 1
    assert "the schedule computes each of its 3 steps" in said[0]


def test_a_bare_model_when_the_next_generation_begins_or_the_cache_is_removed():
    for end in (draw, remove_foca_cache):
        model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(schedule=Adaptive(tol=1e-9)))
        assert _said(lambda model=model: draw(model)) == []  # nothing tells that it is over
        assert len(_said(lambda model=model, end=end: end(model))) == 1


def test_a_loop_that_starts_anew_at_every_step():
    """A coarse stochastic sampler around a bare model: the samples jump, so each step is new."""
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=4))
    for step in range(STEPS):
        torch.manual_seed(step)
        call_dit(model, [1000.0 - 50 * step], torch.randn(1, 4, 8, 8))
    (message,) = _said(lambda: call_dit(model, [1000.0], torch.randn(1, 4, 8, 8)))
    assert f"the sample does not continue the one before ({STEPS - 1} times in 12 s" in message


def test_a_state_of_ones_own_when_it_is_reset():
    config = FoCaCacheConfig(schedule=Adaptive(tol=1e-9))
    model, state = apply_foca_cache(tiny_dit(), config), CacheState(config)
    with cache_scope(model, state):
        call_dit(model, [900.0, 800.0], torch.ones(1, 4, 8, 8))
    assert len(_said(state.reset)) == 1


def test_guidance_switched_off_before_the_first_skip_is_no_idle_generation():
    """The restart ends a stretch in which nothing was skipped, but not the generation."""
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=4))
    x = torch.randn(1, 4, 8, 8)

    def run():
        for step in range(3):
            call_dit(model, [1000.0 - 50 * step] * 2, x)
        call_dit(model, [1000.0 - 50 * step for step in range(3, 12)], x)
        call_dit(model, [1000.0], x)

    assert _said(run) == []
    assert foca_cache_stats(model)["skipped_steps"] > 0
