"""The life of a cache in a DiT: generations, branches, requests; never silently stale."""

import contextlib
import copy
import gc
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from models import call_dit, draw, tiny_dit

from foca_dit import (
    Adaptive,
    CacheState,
    FoCaCacheConfig,
    FullSteps,
    apply_foca_cache,
    cache_scope,
    foca_cache_stats,
    reasons,
)
from foca_dit.adapters.hooks import find_hook
from foca_dit.history import FeatureHistories
from foca_dit.stats import CacheStats

GRANULARITIES = ("module", "stack", "output")


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_every_generation_starts_afresh(granularity, guidance_scale):
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity=granularity))
    first = draw(model, guidance_scale=guidance_scale)
    for change in ({"seed": 1}, {"batch": 3}, {"steps": 9}):
        fresh = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity=granularity))
        expected = draw(fresh, **change, guidance_scale=guidance_scale)
        actual = draw(model, **change, guidance_scale=guidance_scale)
        assert torch.equal(actual, expected), change
    assert torch.equal(draw(model, guidance_scale=guidance_scale), first)


@pytest.mark.filterwarnings("ignore:foca_dit. a generation in which nothing was skipped")
@pytest.mark.parametrize("given_up_after", [1, 2, 4, 6])
@pytest.mark.parametrize("restart_at", [1000.0, 500.0])
@pytest.mark.parametrize("same_buffer", [False, True])
def test_a_generation_given_up_is_never_continued(given_up_after, restart_at, same_buffer):
    """Also when the next one begins further on, as img2img does, and in the same memory."""
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity="stack"))
    old, new = torch.randn(2, 2, 4, 8, 8).unbind()
    call_dit(model, [1000.0 - 20 * i for i in range(given_up_after)], old)
    if same_buffer:
        new = old.copy_(new)
    timesteps = [restart_at - 20 * i for i in range(8)]
    actual = call_dit(model, timesteps, new)
    fresh = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity="stack"))
    expected = call_dit(fresh, timesteps, new)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_two_calls_a_step_are_two_branches(granularity):
    """Guidance as two calls per step gives what one batch of two gives."""
    # Uniform: an adaptive one sees the norm of both in one batch, of the first in two calls.
    config = FoCaCacheConfig(granularity=granularity, cache_interval=3, history_dtype=torch.float32)
    joint, split = (apply_foca_cache(tiny_dit(), config) for _ in range(2))
    x, labels = torch.randn(1, 4, 8, 8), torch.tensor([3, 10])
    for step in range(9):
        t = 1000.0 - 100 * step
        both = call_dit(joint, [t], torch.cat([x, x]), labels)[0]
        one, two = (call_dit(split, [t], x, label[None])[0] for label in labels)
        torch.testing.assert_close(torch.cat([one, two]), both, rtol=1e-5, atol=1e-5)
        x = x - 0.05 * both[:1]
    assert foca_cache_stats(split)["skipped_steps"] == 2 * foca_cache_stats(joint)["skipped_steps"]
    assert foca_cache_stats(split)["restarts"] == {}


def test_a_failed_step_can_be_run_again():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=3))
    fresh = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=3))
    x = torch.randn(2, 4, 8, 8)
    timesteps = [1000.0 - 50 * i for i in range(8)]
    expected = call_dit(fresh, timesteps, x)
    block = model.transformer_blocks[1]
    for t, theirs in zip(timesteps, expected, strict=True):
        block.norm3.register_forward_pre_hook(_fail, prepend=True)
        if not find_hook(model).state.branches or _due(model):
            with pytest.raises(FloatingPointError):
                call_dit(model, [t], x)
        block.norm3._forward_pre_hooks.clear()
        assert torch.equal(call_dit(model, [t], x)[0], theirs)


def _fail(module, args):
    raise FloatingPointError("in the middle of a step")


def _due(model):
    (branch,) = find_hook(model).state.branches.values()
    histories = branch.histories
    histories.begin(branch.trajectory.step + 1, branch.trajectory.tau)
    return histories.due(0)


def test_a_failed_step_that_is_not_repeated_costs_a_full_step_and_nothing_else():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=3))
    x = torch.randn(2, 4, 8, 8)
    call_dit(model, [1000.0, 950.0, 900.0], x)
    call_dit(model, [850.0, 800.0], x)
    handle = model.transformer_blocks[1].norm3.register_forward_pre_hook(_fail)
    with pytest.raises(FloatingPointError):
        call_dit(model, [750.0], x)
    handle.remove()
    call_dit(model, [700.0], x)
    (branch,) = find_hook(model).state.branches.values()
    assert {anchors[-1] for anchors in branch.histories.anchors} == {6}


def test_requests_interleaved_on_one_model():
    """Two requests with a state each, call by call in turn, equal two runs of their own."""
    config = FoCaCacheConfig(cache_interval=4)
    model = apply_foca_cache(tiny_dit(), config)
    samples = torch.randn(2, 2, 4, 8, 8).unbind()
    states = [CacheState(config) for _ in samples]
    timesteps = [1000.0 - 50 * i for i in range(10)]
    actual = [[], []]
    for t in timesteps:
        for x, state, outputs in zip(samples, states, actual, strict=True):
            with cache_scope(model, state, branch="cond"):
                outputs += call_dit(model, [t], x)
    for x, outputs in zip(samples, actual, strict=True):
        fresh = apply_foca_cache(tiny_dit(), config)
        for ours, theirs in zip(outputs, call_dit(fresh, timesteps, x), strict=True):
            assert torch.equal(ours, theirs)
    assert foca_cache_stats(model)["full_steps"] == 0  # the model's own state saw none of it
    assert foca_cache_stats(model, states[0])["skipped_steps"] == 6


def test_scope_without_a_state_is_lossless():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=4))
    x = torch.randn(1, 4, 8, 8)
    timesteps = [1000.0 - 50 * i for i in range(6)]
    expected = call_dit(tiny_dit(), timesteps, x)
    with cache_scope(model, None):
        actual = call_dit(model, timesteps, x)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert foca_cache_stats(model)["nbytes"] == 0


@pytest.mark.filterwarnings("ignore:foca_dit. a generation in which nothing was skipped")
def test_a_state_of_ones_own_refuses_a_step_out_of_order():
    config = FoCaCacheConfig()
    model = apply_foca_cache(tiny_dit(), config)
    state, x = CacheState(config), torch.randn(1, 4, 8, 8)
    with cache_scope(model, state):
        call_dit(model, [900.0, 800.0, 700.0, 600.0], x)
        held = _tensors(state)
        with pytest.raises(RuntimeError, match=r"timestep 800 .* out of order.*state\.reset\(\)"):
            call_dit(model, [800.0], x)
        assert all(torch.equal(a, b) for a, b in zip(held, _tensors(state), strict=True))
        state.reset()
        assert state.nbytes == 0
        call_dit(model, [800.0], x)


def _tensors(state):
    slots = [slots for b in state.branches.values() for slots in b.histories._slots]
    return [slot.clone() for feature in slots for slot in feature]


def test_guidance_switched_off_part_way():
    """Fewer calls a step may also be a generation begun anew: both start with full steps."""
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity="stack"))
    x = torch.randn(1, 4, 8, 8)
    timesteps = [1000.0 - 20 * i for i in range(14)]
    for t in timesteps[:5]:
        call_dit(model, [t, t], x)
    call_dit(model, timesteps[5:6], x)
    actual = call_dit(model, timesteps[6:], x)
    fresh = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity="stack"))
    expected = call_dit(fresh, timesteps[6:], x)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)
    (reason,) = foca_cache_stats(model)["restarts"]
    assert "fewer calls" in reason


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_guidance_switched_on_part_way_counts_from_there(granularity):
    """Unnamed, the other prompt called first: it is not taken for what was alone before."""
    config = FoCaCacheConfig(granularity=granularity, cache_interval=3, history_dtype=torch.float32)
    model, named = (apply_foca_cache(tiny_dit(), config) for _ in range(2))
    x, state = torch.randn(1, 4, 8, 8), CacheState(config)
    labels = {"uncond": torch.tensor([10]), "cond": torch.tensor([3])}

    def in_scope(t, branch):
        with cache_scope(named, state, branch=branch):
            return call_dit(named, [t], x, labels[branch])[0]

    timesteps = [1000.0 - 20 * i for i in range(15)]
    call_dit(model, timesteps[:7], x, labels["cond"])
    actual, expected = [], []
    for t in timesteps[7:]:
        for branch, label in labels.items():
            actual += call_dit(model, [t], x, label)
            expected.append(in_scope(t, branch))
    torch.testing.assert_close(actual, expected)
    assert foca_cache_stats(model)["restarts"] == {reasons.RECONDITIONED: 1}
    assert foca_cache_stats(named, state)["skipped_steps"] > 4


def test_one_call_again_and_again_does_not_fill_memory():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity="module"))
    held = [(call_dit(model, [500.0], torch.randn(1, 4, 8, 8)), foca_cache_stats(model)["nbytes"])]
    x = torch.randn(1, 4, 8, 8)
    for _ in range(40):
        call_dit(model, [500.0], x)
        held.append((None, foca_cache_stats(model)["nbytes"]))
    assert max(nbytes for _, nbytes in held) == 16 * held[0][1]
    assert any("more than 16 calls" in reason for reason in foca_cache_stats(model)["restarts"])


@pytest.mark.parametrize("scoped", [False, True])
def test_a_call_whose_decision_fails_can_be_run_again(scoped):
    broken = []

    def reduce(defects):
        if broken:
            raise RuntimeError("a rank timed out")

    config = FoCaCacheConfig(schedule=Adaptive(tol=1e-9, reduce=reduce), granularity="stack")
    model, fresh = (apply_foca_cache(tiny_dit(), config) for _ in range(2))
    state, x = CacheState(config), torch.randn(1, 4, 8, 8)
    timesteps = [1000.0 - 50 * i for i in range(12)]
    expected = call_dit(fresh, timesteps, x)
    for step, t in enumerate(timesteps):
        with cache_scope(model, state) if scoped else contextlib.nullcontext():
            if step == 6:
                broken.append(True)
                with pytest.raises(RuntimeError, match="timed out"):
                    call_dit(model, [t], x)
                broken.clear()
            assert torch.equal(call_dit(model, [t], x)[0], expected[step])
    stats = foca_cache_stats(model, state if scoped else None)
    assert stats["restarts"] == {}
    assert stats["full_steps"] == 12


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_state_serves_one_model(granularity):
    config = FoCaCacheConfig(granularity=granularity)
    first, second = (apply_foca_cache(tiny_dit(), config) for _ in range(2))
    state = CacheState(config)
    with cache_scope(first, state):
        call_dit(first, [900.0], torch.randn(1, 4, 8, 8))
    with pytest.raises(ValueError, match="a CacheState per request and model"):
        cache_scope(second, state).__enter__()
    with cache_scope(first, state):
        call_dit(first, [800.0], torch.randn(1, 4, 8, 8))
    orphan = copy.deepcopy(state)
    state.reset()
    with cache_scope(second, state):
        call_dit(second, [700.0], torch.randn(1, 4, 8, 8))
    del first
    gc.collect()
    assert orphan.nbytes > 0
    with cache_scope(second, orphan):
        assert orphan.nbytes == 0


def test_a_time_variable_that_stands_still_is_refused():
    config = FoCaCacheConfig(time=lambda timestep: 1.0)
    model = apply_foca_cache(tiny_dit(), config)
    x = torch.randn(1, 4, 8, 8)
    call_dit(model, [1000.0], x)
    with pytest.raises(ValueError, match="strictly monotone times"):
        call_dit(model, [900.0], x)


def test_a_feature_that_changes_shape_begins_a_new_history():
    stats = CacheStats()
    histories = FeatureHistories(FoCaCacheConfig().resolve(), 1, stats)
    for step, shape in enumerate([(2, 3), (2, 3), (4, 3)]):
        histories.begin(step, range(step + 1))
        histories.commit(0, torch.ones(shape))
    assert histories.anchors == [(2,)]
    assert histories.nbytes == 3 * 4 * 12


def test_two_calls_a_step_in_one_branch_are_refused():
    config = FoCaCacheConfig()
    model = apply_foca_cache(tiny_dit(), config)
    state, x = CacheState(config), torch.randn(1, 4, 8, 8)
    with cache_scope(model, state):
        call_dit(model, [900.0], x)
        with pytest.raises(RuntimeError, match=r"two calls a step are two branches"):
            call_dit(model, [900.0], x)


def test_another_prompt_from_the_same_noise_after_one_step():
    """Counted as one more branch at first; nothing is forecast before that is cleared up."""
    config = FoCaCacheConfig(cache_interval=5, granularity="stack", disable_cache_before_step=1)
    model, fresh = (apply_foca_cache(tiny_dit(), config) for _ in range(2))
    x, timesteps = torch.randn(1, 4, 8, 8), [1000.0 - 20 * i for i in range(3)]
    call_dit(model, timesteps[:1], x, torch.tensor([1]))
    actual = call_dit(model, timesteps, x, torch.tensor([2]))
    expected = call_dit(tiny_dit(), timesteps, x, torch.tensor([2]))
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)  # all full: step 0, 1, and 2 that starts anew
    call_dit(fresh, timesteps, x)
    assert foca_cache_stats(fresh)["skipped_steps"] == 1


def test_a_batch_at_different_timesteps_runs_uncached():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig())
    x, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    with torch.no_grad(), pytest.warns(UserWarning, match="one timestep for the whole batch"):
        model(x, timestep=torch.tensor([900.0, 500.0]), class_labels=labels)


def test_a_failing_time_function_leaves_the_trajectory_whole():
    broken = []

    def time(timestep):
        if broken:
            raise ArithmeticError("no time")
        return -timestep

    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=5, time=time))
    x = torch.randn(1, 4, 8, 8)
    call_dit(model, [900.0, 800.0], x)
    broken.append(True)
    with pytest.raises(ArithmeticError):
        call_dit(model, [700.0], x)
    broken.clear()
    call_dit(model, [700.0, 600.0], x)
    assert foca_cache_stats(model)["skipped_steps"] == 1


def _under(scheduler, config, knows, noises=1, steps=8):
    """A loop under a scheduler that the cache knows or not; every call of a step has a noise."""
    model, ran = tiny_dit(), []
    pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
    apply_foca_cache(pipeline if knows else model, config)
    model.transformer_blocks[0].norm3.register_forward_pre_hook(lambda *_: ran.append(step))
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    step = 0
    for step, t in enumerate(scheduler.timesteps):  # noqa: B007
        calls = [
            call_dit(model, [float(t)], x + i * torch.randn_like(x), torch.tensor([i]))[0]
            for i in range(noises)
        ]
        velocity = torch.stack(calls).mean(0)[:, :4]
        x = scheduler.step(velocity, t, x).prev_sample
    return foca_cache_stats(model), sorted(set(ran))


@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, DDIMScheduler])
def test_the_second_step_is_skipped_if_the_schedule_says_so(kind):
    config = FoCaCacheConfig(schedule=FullSteps([0, 3, 6]), granularity="stack")
    stats, ran = _under(kind(), config, knows=True)
    assert (ran, stats["fallbacks"]) == ([0, 3, 6], {})


def test_the_second_step_is_computed_where_no_scheduler_is_known():
    kind, config = FlowMatchEulerDiscreteScheduler, FoCaCacheConfig(granularity="stack")
    config = replace(config, schedule=FullSteps([0, 3, 6]))
    stats, ran = _under(kind(), config, knows=False)
    assert ran == [0, 1, 3, 6]
    assert stats["fallbacks"] == {reasons.SECOND_STEP: 1}
    stats, ran = _under(kind(), replace(config, schedule=FullSteps([0, 1, 3])), knows=False)
    assert (ran, stats["fallbacks"]) == ([0, 1, 3], {})


def test_branches_with_noise_of_their_own_are_told_apart_by_the_scheduler():
    """As Cosmos calls its model: new noise in every call, and no names."""
    config = FoCaCacheConfig(schedule=FullSteps([0, 1, 4]), granularity="stack")
    stats, _ = _under(FlowMatchEulerDiscreteScheduler(), config, knows=True, noises=2)
    assert (stats["full_steps"], stats["skipped_steps"]) == (6, 10)
    assert stats["restarts"] == {}
