"""The adaptive interval in real models: one decision and one host read per full step."""

import math
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from models import draw, tiny_dit
from torch.overrides import TorchFunctionMode

from foca_dit import (
    Adaptive,
    CacheState,
    FoCaCacheConfig,
    FullSteps,
    Interval,
    apply_foca_cache,
    cache_scope,
    foca_cache_stats,
    remove_foca_cache,
    times,
)
from foca_dit.adapters.hooks import find_hook
from foca_dit.analysis.metrics import psnr
from foca_dit.analysis.sampling import sample
from foca_dit.clock import NoiseLevels, make_clock
from foca_dit.evaluation.trained import load
from foca_dit.history import FeatureHistories
from foca_dit.schedules import Outlook
from foca_dit.stats import CacheStats

WEIGHTS = Path(__file__).parents[2] / "examples/fashion_dit/weights"
GRANULARITIES = ("module", "stack", "output")


class CountReads(TorchFunctionMode):
    """Counts how often a list of numbers is read back from a tensor."""

    reads = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.reads += function is torch.Tensor.tolist
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def call(model, t, x, label=0):
    labels = torch.full((len(x),), label)
    return model(x, timestep=torch.full((len(x),), t), class_labels=labels).sample


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_generation_may_leave_inference_mode_part_way(granularity):
    config = FoCaCacheConfig(schedule=Adaptive(budget=5), granularity=granularity)
    alone, mixed = (apply_foca_cache(tiny_dit(), config) for _ in range(2))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(10):
        with torch.inference_mode(step < 3):
            output = call(mixed, 900.0 - 90 * step, x)
        assert torch.equal(output, call(alone, 900.0 - 90 * step, x))
    assert foca_cache_stats(mixed)["full_steps"] == foca_cache_stats(alone)["full_steps"]


@pytest.mark.parametrize("start", [0, 3])
def test_timesteps_that_the_loop_does_not_follow_are_said_once(start, recwarn):
    given = [900.0 - 90 * step for step in range(10)]
    config = FoCaCacheConfig(schedule=Adaptive(budget=5, timesteps=given), granularity="output")
    model = apply_foca_cache(tiny_dit(), config)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in given[start:] * 2:  # a loop may begin part-way
        call(model, t, x)
    assert not recwarn.list
    for t in [*range(900, 0, -100)] * 2:
        call(model, float(t), x)
    (said,) = recwarn.list
    assert said.category is RuntimeWarning
    assert "'timesteps': expected those of the loop, got 900, 810, .., 180, 90" in str(said.message)
    assert "calls at 900, 800: " in str(said.message)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("limit", [{"tol": 0.3}, {"budget": 7}])
def test_a_replay_from_a_file_is_equal_bit_for_bit(granularity, limit, tmp_path):
    images = []
    schedule = Adaptive(**limit)
    for _ in range(2):
        config = FoCaCacheConfig(schedule=schedule, granularity=granularity)
        model = apply_foca_cache(tiny_dit(), config)
        images.append(draw(model, steps=20))
        stats = foca_cache_stats(model)
        if isinstance(schedule, Adaptive):
            assert len(stats["schedule"]) == stats["full_steps"] < 20
            assert len(stats["predicted_errors"]) == stats["full_steps"]
            assert all(e >= 0 for e in stats["predicted_errors"] if not math.isnan(e))
            FullSteps(stats["schedule"]).save(tmp_path / "steps.json")
            schedule = FullSteps.load(tmp_path / "steps.json")
    assert torch.equal(*images)
    assert foca_cache_stats(model)["full_steps"] == len(schedule.steps)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_one_host_read_per_full_step_and_none_per_skipped(granularity):
    config = FoCaCacheConfig(schedule=Adaptive(budget=6), granularity=granularity)
    model = apply_foca_cache(tiny_dit(), config)
    state, x = CacheState(config), torch.randn(1, 4, 8, 8)
    with cache_scope(model, state):
        for step in range(20):
            full, t = state.stats.full_steps, 1000.0 - 50 * step
            with CountReads() as counter:
                call(model, t, x)
            decided = state.stats.full_steps - full
            assert counter.reads == 1 + decided  # the timestep is read at every step
    assert state.stats.full_steps == state.stats.host_reads == 6


def test_all_features_and_guidance_branches_share_one_decision():
    config = FoCaCacheConfig(schedule=Adaptive(budget=6), granularity="module")
    model = apply_foca_cache(tiny_dit(), config)
    state, x = CacheState(config), torch.randn(1, 4, 8, 8)
    for step in range(20):
        for name in ("cond", "uncond"):
            with cache_scope(model, state, branch=name):
                call(model, 1000.0 - 50 * step, x, label=len(name))
    anchors = {a for b in state.branches.values() for a in b.histories.anchors}
    assert len(anchors) == 1
    assert (state.stats.full_steps, state.stats.host_reads) == (12, 6)
    assert state.stats.mixed_steps == 0


def test_what_reduce_makes_of_the_sums_is_what_counts():
    """An all-reduce goes there; here a defect a hundred times as large, so a denser schedule."""

    def steps(reduce):
        schedule = Adaptive(tol=1.0, reduce=reduce)
        model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(schedule=schedule))
        draw(model, steps=20)
        return foca_cache_stats(model)["schedule"]

    seen = []

    def larger(sums):
        seen.append(tuple(sums.shape))
        sums[0] *= 1e4

    plain, scaled = steps(None), steps(larger)
    assert len(scaled) > len(plain)
    assert seen == [(2,)] * len(scaled)


def test_features_that_are_not_finite_are_counted_and_not_cached_far():
    config = FoCaCacheConfig(schedule=Adaptive(tol=10.0), granularity="output")
    model = apply_foca_cache(tiny_dit(), config)
    state = CacheState(config)
    with cache_scope(model, state):
        for step in range(8):
            call(model, 1000.0 - 50 * step, torch.full((1, 4, 8, 8), math.nan))
    assert state.stats.full_steps == 8
    assert state.stats.nonfinite_defects == 6  # from the third on there is something to measure


def test_a_feature_that_the_model_never_computes_has_no_say():
    settings = FoCaCacheConfig(schedule=Adaptive(tol=0.1, first=1)).resolve()
    histories = FeatureHistories(settings, 2, CacheStats())
    outlook = Outlook((0.0, 1.0, 2.0), (1.0,) * 3)
    for step in range(2):
        histories.begin(step, outlook.tau)
        histories.commit(0, torch.randn(1, 4, 8))
        assert histories.undecided
        histories.decide(outlook)
    assert histories.anchors == [(0, 1), ()]


def test_two_generations_and_another_number_of_steps():
    config = FoCaCacheConfig(schedule=Adaptive(budget=6))
    model = apply_foca_cache(tiny_dit(), config)
    for steps in (20, 20, 30):
        draw(model, steps=steps)
    stats = foca_cache_stats(model)
    assert stats["full_steps"] == stats["host_reads"] == 18
    assert stats["schedule"][-1] > 20
    assert len(stats["predicted_errors"]) == 6


def test_a_single_step():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(schedule=Adaptive(tol=1.0)))
    assert torch.equal(draw(model, steps=1), draw(tiny_dit(), steps=1))


def test_a_branch_that_was_left_out_starts_anew():
    """Guidance switched off for a while: the old history says nothing about now."""
    config = FoCaCacheConfig(preset="paper", cache_interval=4)
    model = apply_foca_cache(tiny_dit(), config)
    state, x = CacheState(config), torch.randn(1, 4, 8, 8)
    for step in range(12):
        for name in ("cond", "uncond"):
            if name == "uncond" and 4 <= step < 8:
                continue
            with cache_scope(model, state, branch=name):
                call(model, 1000.0 - 50 * step, x)
    assert list(state.stats.restarts) == ["the guidance branch was left out of a step"]
    assert sum(state.stats.restarts.values()) == 1
    anchors = {name: set(b.histories.anchors) for name, b in state.branches.items()}
    assert anchors == {"cond": {(0, 1, 2, 6, 10)}, "uncond": {(0, 1, 2)}}  # anew from step 8


@pytest.mark.parametrize(
    ("shift", "steps", "uniform", "margin"),
    [(1.0, 50, Interval(7), 3.0), (3.0, 20, Interval(4), 2.0)],
)
def test_beats_the_uniform_interval_at_equal_full_steps(shift, steps, uniform, margin):
    model, _ = load(WEIGHTS)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
    noise = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    full = sample(model, scheduler, noise, torch.arange(4), steps)
    budget, decibels = len(uniform.full_steps(steps)), {}
    for name, schedule in {"adaptive": Adaptive(budget=budget), "uniform": uniform}.items():
        apply_foca_cache(pipeline, FoCaCacheConfig(schedule=schedule))
        decibels[name] = psnr(sample(model, scheduler, noise, torch.arange(4), steps), full)
        assert foca_cache_stats(model)["full_steps"] == budget
        remove_foca_cache(model)
    assert find_hook(model) is None
    assert decibels["adaptive"] > decibels["uniform"] + margin


@torch.no_grad()
def test_a_forgotten_branch_gives_its_memory_back():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(schedule=Adaptive(tol=0.01)))
    state = find_hook(model).state
    x, labels = torch.randn(2, 4, 8, 8), torch.zeros(2, dtype=torch.long)

    def call(timestep):
        with cache_scope(model, state, branch="cond"):
            model(x, timestep=torch.full((2,), timestep), class_labels=labels)

    for timestep in (1000.0, 980.0, 960.0, 940.0):
        call(timestep)
    old = weakref.ref(state.branches["cond"].histories)
    state.forget("cond")
    assert state.nbytes == 0
    assert old() is None


@pytest.mark.parametrize("time", ["log_snr", "step"])
def test_distances_are_measured_where_features_move_evenly(time):
    """The controller takes the stretched ends of log-SNR for shorter than the forecasts do."""
    seen = []

    class Watching(Adaptive):
        def decide(self, situation):
            seen.append(situation.outlook.tau)
            return super().decide(situation)

    steps = [1000.0 - 50 * step for step in range(20)]
    config = FoCaCacheConfig(schedule=Watching(budget=6, timesteps=steps), time=time)
    model, state = apply_foca_cache(tiny_dit(), config), CacheState(config)
    with cache_scope(model, state):
        for t in steps:
            call(model, t, torch.randn(1, 4, 8, 8))
    pace, own = (make_clock(variable, NoiseLevels()) for variable in (times.paced(time), time))
    assert len(seen) == 6
    for tau in seen:
        np.testing.assert_allclose(tau, [pace(t, step) for step, t in enumerate(steps)])
    (branch,) = state.branches.values()
    assert list(branch.trajectory.tau) == [own(t, step) for step, t in enumerate(steps)]
