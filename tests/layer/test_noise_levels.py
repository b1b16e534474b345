"""Models whose timestep is no share of noise from 1 down to 0: Lumina 2, Cosmos."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from generic_cases import GENERIC, build
from models import call_dit, tiny_dit

from foca_dit import Adaptive, FoCaCacheConfig, apply_foca_cache, foca_cache_stats
from foca_dit.adapters.hooks import find_hook
from foca_dit.clock import NoiseLevels
from foca_dit.schedules.sampler import error_weights

STEPS = 20


def _trajectory(model):
    (branch,) = find_hook(model).state.branches.values()
    return branch.trajectory


@torch.no_grad()
def _lumina(model, scheduler, steps=STEPS):
    """The loop of Lumina2Pipeline: time is 1 - t / 1000, the velocity points the other way."""
    call = dict(GENERIC["Lumina2Transformer2DModel"][1])
    x = call.pop("hidden_states")
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        time = 1 - t[None] / scheduler.config.num_train_timesteps
        velocity = -model(hidden_states=x, timestep=time, return_dict=False, **call)[0]
        x = scheduler.step(velocity, t, x).prev_sample
    return x


@pytest.mark.parametrize("with_scheduler", [True, False])
def test_lumina_is_forecast_on_the_way_to_the_data(with_scheduler):
    """An inversion would end at noise, so that all of its last steps weigh nothing."""
    scheduler, model = FlowMatchEulerDiscreteScheduler(), build("Lumina2Transformer2DModel")
    target = SimpleNamespace(transformer=model, scheduler=scheduler) if with_scheduler else model
    apply_foca_cache(target, FoCaCacheConfig(tol=0.05))
    expected = _lumina(build("Lumina2Transformer2DModel"), scheduler)
    actual = _lumina(model, scheduler)
    path, stats = _trajectory(model), foca_cache_stats(model)
    sigmas = scheduler.sigmas[:-1].numpy()
    np.testing.assert_allclose(path.tau, np.log((1 - sigmas + 1e-3) / (sigmas + 1e-3)), atol=1e-3)
    assert stats["skipped_steps"] > 3
    assert stats["time_fallbacks"] == stats["restarts"] == {}
    assert (actual - expected).abs().max() < 0.1 * expected.abs().max()


@torch.no_grad()
def _cosmos(model, scheduler, steps=STEPS):
    """The loop of CosmosTextToWorldPipeline, without guidance: the model is given c_noise."""
    call = dict(GENERIC["CosmosTransformer3DModel"][1])
    scheduler.set_timesteps(steps)
    x = call.pop("hidden_states") * scheduler.config.sigma_max
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        output = model(hidden_states=scaled, timestep=t[None], return_dict=False, **call)[0]
        x = scheduler.step(output, t, x).prev_sample
    return x


def test_cosmos_noise_levels_are_read_off_its_scheduler():
    scheduler, model = EDMEulerScheduler(sigma_data=1.0), build("CosmosTransformer3DModel")
    expected = _cosmos(build("CosmosTransformer3DModel"), scheduler)
    apply_foca_cache(
        SimpleNamespace(transformer=model, scheduler=scheduler), FoCaCacheConfig(tol=0.05)
    )
    actual = _cosmos(model, scheduler)
    sigmas = scheduler.sigmas[:-1].numpy()
    share = sigmas / (1 + sigmas)
    np.testing.assert_allclose(
        _trajectory(model).tau, np.log((1 - share + 1e-3) / (share + 1e-3)), atol=1e-3
    )
    stats = foca_cache_stats(model)
    assert stats["skipped_steps"] > 3
    assert stats["time_fallbacks"] == stats["restarts"] == {}
    assert (actual - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("time", ["log_snr", "step"])
def test_cosmos_without_its_scheduler_is_forecast_in_step_indices_and_says_why(time):
    scheduler, model = EDMEulerScheduler(sigma_data=1.0), build("CosmosTransformer3DModel")
    apply_foca_cache(model, FoCaCacheConfig(cache_interval=4, time=time))
    _cosmos(model, scheduler)
    stats = foca_cache_stats(model)
    assert _trajectory(model).tau == list(range(STEPS))
    assert (stats["full_steps"], stats["skipped_steps"]) == (7, 13)
    if time == "step":
        assert stats["time_fallbacks"] == {}
        return
    ((reason, count),) = stats["time_fallbacks"].items()
    assert count == 1
    assert reason.startswith("timesteps like 1.1 are not from 0 to 1, so their noise levels are")


@torch.no_grad()
def _stable_audio(model, scheduler):
    """The loop of StableAudioPipeline, without guidance; its sampler adds noise at every step."""
    call = dict(GENERIC["StableAudioDiTModel"][1])
    scheduler.set_timesteps(STEPS)
    x = call.pop("hidden_states") * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        output = model(hidden_states=scaled, timestep=t[None], return_dict=False, **call)[0]
        x = scheduler.step(output, t, x, generator=generator).prev_sample


class CosineDPMSolverMultistepScheduler(EDMEulerScheduler):
    """What diffusers' own, which needs torchsde, passes to the model; stochastic, too."""

    def precondition_noise(self, sigma):
        return torch.as_tensor(sigma).atan() / np.pi * 2

    def step(self, output, timestep, sample, generator=None):
        return super().step(output, timestep, sample, s_churn=STEPS / 3, generator=generator)


@pytest.mark.parametrize("own", [True, False])
def test_stable_audios_noise_levels_are_read_off_its_scheduler(own):
    if own:
        pytest.importorskip("torchsde")
        scheduler = diffusers.CosineDPMSolverMultistepScheduler()
    else:
        scheduler = CosineDPMSolverMultistepScheduler(sigma_max=500.0, sigma_min=0.3)
    model = build("StableAudioDiTModel")
    config = FoCaCacheConfig(schedule=Adaptive(budget=8))
    apply_foca_cache(SimpleNamespace(transformer=model, scheduler=scheduler), config)
    _stable_audio(model, scheduler)
    share = (scheduler.sigmas[:-1] / (1 + scheduler.sigmas[:-1])).numpy()
    np.testing.assert_allclose(
        _trajectory(model).tau, np.log((1 - share + 1e-3) / (share + 1e-3)), atol=1e-2
    )
    stats = foca_cache_stats(model)
    assert stats["restarts"] == stats["time_fallbacks"] == {}
    assert (stats["full_steps"], stats["skipped_steps"]) == (8, STEPS - 8)


def test_its_largest_timestep_has_a_noise_level():
    levels = NoiseLevels.of(CosineDPMSolverMultistepScheduler(), 1.0)
    assert 0.999 < levels.sigma(1.0) < 1
    assert all(np.isfinite(error_weights(levels, [1.0, 0.5, 0.0])))


def test_a_loop_that_leaves_the_known_range_part_way_starts_anew_in_step_indices():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=4))
    x = torch.randn(1, 4, 8, 8)
    times = [400.0 - 50 * i for i in range(16)]
    call_dit(model, times, x)
    stats = foca_cache_stats(model)
    outside = sum(t < -1000 / 64 for t in times)
    assert _trajectory(model).tau == list(range(outside))
    assert stats["restarts"] == {"the timestep left the range that noise levels are known for": 1}
    assert list(stats["time_fallbacks"].values()) == [1]
    assert stats["skipped_steps"] == 5 + 3


def test_counts_of_many_threads_add_up_and_outlive_them():
    """Every thread counts for itself: `+=` on a shared number would lose some."""
    model, threads, runs = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=4)), 4, 5
    ready = threading.Barrier(threads)

    def work(seed):
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        ready.wait(timeout=10)
        for _ in range(runs):
            call_dit(model, [1000.0 - 50 * i for i in range(8)], x)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, seed) for seed in range(threads)]:
            done.result()
        alive = foca_cache_stats(model)
    gone = foca_cache_stats(model)
    for name, count in {"full_steps": 4, "skipped_steps": 4, "commits": 4, "forecasts": 4}.items():
        assert alive[name] == gone[name] == count * runs * threads, name
    assert sum(gone["restarts"].values()) == (runs - 1) * threads
    assert gone == foca_cache_stats(model)


@pytest.mark.filterwarnings("ignore:foca_dit. a generation in which nothing was skipped")
def test_whether_a_generation_skipped_anything_is_asked_thread_by_thread():
    """What another thread skips meanwhile is no excuse."""
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(cache_interval=4))
    x = torch.randn(1, 4, 8, 8)
    with ThreadPoolExecutor(1) as pool:
        call_dit(model, [1000.0, 900.0], x)
        pool.submit(call_dit, model, [1000.0 - 50 * i for i in range(8)], x).result()
        with pytest.warns(UserWarning, match="nothing was skipped: the schedule computes each of"):
            call_dit(model, [1000.0], x)
