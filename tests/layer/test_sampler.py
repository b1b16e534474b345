"""The sampler's weight of an error, against diffusers' schedulers; and the steps to come."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from foca_dit.clock import NoiseLevels, make_clock
from foca_dit.schedules.sampler import LARGE_STD, NOISE_STD, error_weights, look_ahead


def response(scheduler, steps):
    """|x' (output + 1) - x' (output)| of every step of a real scheduler, and (alpha', sigma')."""
    scheduler.set_timesteps(steps)
    found = []
    for t in scheduler.timesteps:
        x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
        moved = []
        for output in (x, x + 1):
            scheduler._step_index = None
            moved.append(scheduler.step(output, t, x).prev_sample)
        found.append(float((moved[1] - moved[0]).abs().max()))
    return found


SCHEDULERS = {
    "flow": lambda: FlowMatchEulerDiscreteScheduler(),
    "flow, shifted": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    **{
        f"DDIM, {kind}": lambda kind=kind: DDIMScheduler(
            prediction_type=kind, clip_sample=False, timestep_spacing="trailing"
        )
        for kind in ("epsilon", "v_prediction", "sample")
    },
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_weights_are_the_schedulers_own_coefficients(name):
    scheduler = SCHEDULERS[name]()
    expected = response(scheduler, 10)  # 1000 divides: each step ends where the next begins
    levels = NoiseLevels.of(scheduler, 1000.0)
    timesteps = levels.planned()
    ends = [*map(levels.place, timesteps[1:]), (1.0, 0.0)]
    c = NOISE_STD if "epsilon" in name else LARGE_STD
    stretch = [c / math.hypot(a * c, s) for a, s in ends]
    actual = np.array(error_weights(levels, timesteps)) / stretch
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cls", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
def test_flow_schedulers_with_an_unused_table_of_alphas_are_flow(cls):
    """Wan's and Sana's: their class has a table for noise prediction, their sigmas are a flow's."""
    scheduler = cls(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.set_timesteps(10)
    assert scheduler.alphas_cumprod is not None
    levels = NoiseLevels.of(scheduler, 1000.0)
    timesteps = levels.planned()
    sigmas = [levels.place(t)[1] for t in timesteps]
    np.testing.assert_allclose(sigmas, scheduler.sigmas[:-1].numpy(), atol=1e-3)
    assert error_weights(levels, timesteps) == error_weights(NoiseLevels(), timesteps)
    assert make_clock("sigma", levels)(750.0, 0) == make_clock("sigma", NoiseLevels())(750.0, 0)


def test_a_scheduler_without_a_configuration_tells_its_steps():
    scheduler = SimpleNamespace(timesteps=torch.tensor([1000.0, 500.0]))
    assert NoiseLevels.of(scheduler, 1.0).planned() == (1.0, 0.5)


@pytest.mark.parametrize("sigma", [0.95, 0.6, 0.2])
def test_stretch_is_the_flows_own(sigma):
    """An error in the sample of a Gaussian of standard deviation c, carried to the end by Euler."""
    c, steps = 3.0, 20_000
    error = 1.0
    for s in np.linspace(sigma, 0, steps, endpoint=False):
        velocity = (s - (1 - s) * c**2) / ((1 - s) ** 2 * c**2 + s**2)  # of x = 1
        error -= sigma / steps * velocity * error
    levels = NoiseLevels(timestep_scale=1.0)
    first, _ = error_weights(levels, [1.0, sigma], data_std=c)
    assert first / (1 - sigma) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_weights_of_edm_are_the_schedulers_own_coefficients(sigma_data):
    scheduler = EDMEulerScheduler(sigma_data=sigma_data)
    expected = response(scheduler, 10)
    levels = NoiseLevels.of(scheduler, 1.0)
    timesteps, sigmas = levels.planned(), scheduler.sigmas.numpy().astype(float)
    assert timesteps == pytest.approx(np.log(sigmas[:-1]) / 4, rel=1e-4, abs=1e-4)
    stretch = LARGE_STD / np.hypot(LARGE_STD, sigmas[1:])
    actual = np.array(error_weights(levels, timesteps)) / stretch
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_continuous_timesteps_of_euler_are_read_as_the_sigmas_that_they_are():
    """Not as places in its table of alphas, in which the last ones are one and the same."""
    scheduler = EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True
    )
    expected = response(scheduler, 20)
    levels = NoiseLevels.of(scheduler, 1000.0)
    timesteps, sigmas = levels.planned(), scheduler.sigmas.double().numpy()
    assert all(map(levels.covers, timesteps))
    shares = [levels.sigma(t) for t in timesteps]
    np.testing.assert_allclose(shares, sigmas[:-1] / (1 + sigmas[:-1]), rtol=1e-5)
    tau = [make_clock("log_snr", levels)(t, 0) for t in timesteps]
    assert (np.diff(tau) > 0.05).all()
    stretch = LARGE_STD / np.hypot(LARGE_STD, sigmas[1:])
    actual = np.array(error_weights(levels, timesteps)) / stretch
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cls", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_noise_levels_of_edm_are_the_schedulers(cls):
    scheduler = cls()
    scheduler.set_timesteps(10)
    levels = NoiseLevels.of(scheduler, 1.0)
    expected = scheduler.sigmas[:-1] / (1 + scheduler.sigmas[:-1])
    actual = [levels.sigma(t) for t in levels.planned()]
    assert actual == pytest.approx(expected.tolist(), rel=1e-3)
    assert all(levels.covers(t) for t in levels.planned())


def test_a_time_that_runs_up_is_no_inversion():
    """Lumina is called with 1 - sigma, Mochi with the timesteps of inverted sigmas."""
    plain = FlowMatchEulerDiscreteScheduler(shift=3.0)
    plain.set_timesteps(10)
    mochi = FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True)
    mochi.set_timesteps(sigmas=plain.sigmas[:-1].tolist())
    down = NoiseLevels.of(plain, 1.0)
    expected = outlook_of(down, down.planned()[:3], down.planned())
    for levels in (NoiseLevels.of(plain, 1.0, runs_up=True), NoiseLevels.of(mochi, 1000.0)):
        planned = levels.planned()
        assert list(planned) == sorted(planned)
        outlook = outlook_of(levels, planned[:3], planned)
        np.testing.assert_allclose(outlook.tau, expected.tau, atol=1e-3)
        np.testing.assert_allclose(outlook.weights, expected.weights, atol=1e-3)
        # Without the scheduler the steps to come go on to the data, too.
        bare = NoiseLevels(levels.timestep_scale, runs_up=True)
        assert outlook_of(bare, planned[:3], None).weights[-1] > 0


def test_an_inversion_ends_where_its_last_call_is():
    """From data to noise: the last call is at the end, and what it says moves nothing."""
    levels = NoiseLevels(timestep_scale=1.0)
    sigmas = np.array([0.1, 0.3, 0.6, 0.95])
    after = np.append(sigmas[1:], sigmas[-1])
    expected = (after - sigmas) * LARGE_STD / np.hypot((1 - after) * LARGE_STD, after)
    np.testing.assert_allclose(error_weights(levels, sigmas.tolist()), expected, atol=1e-15)


def test_timesteps_without_a_noise_level_weigh_alike():
    levels = NoiseLevels(timestep_scale=1.0)
    assert error_weights(levels, [1.09, 0.6, -0.3]) == (1.0, 1.0, 1.0)
    assert [levels.covers(t) for t in (1.09, 1.01, 0.0, -0.01, -0.3)] == [0, 1, 1, 1, 0]


def outlook_of(levels, timesteps, planned, time="log_snr"):
    clock = make_clock(time, levels)
    return look_ahead(clock, levels, timesteps, planned)


def test_the_steps_to_come_are_the_schedulers():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    for scale in (1000.0, 1.0):  # what the model is called with: FLUX divides by 1000
        levels = NoiseLevels.of(scheduler, scale)
        planned = levels.planned()
        assert planned[0] == pytest.approx(scale)
        clock = make_clock("log_snr", levels)
        for start in (0, 3):  # img2img begins further on
            outlook = outlook_of(levels, planned[start : start + 3], planned)
            expected = [clock(t, i) for i, t in enumerate(planned[start:])]
            np.testing.assert_allclose(outlook.tau, expected)
            assert not outlook.assumed
            assert len(outlook.weights) == 10 - start


def test_timesteps_in_half_precision_are_still_the_schedulers():
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(50)
    levels = NoiseLevels.of(scheduler, 1000.0)
    seen = [float(torch.tensor(t).bfloat16()) for t in levels.planned()[:7]]
    assert not outlook_of(levels, seen, levels.planned()).assumed


@pytest.mark.parametrize("planned", [None, (900.0, 500.0, 100.0)])
def test_unknown_steps_continue_like_the_last_one(planned):
    levels = NoiseLevels()
    outlook = outlook_of(levels, [1000.0, 900.0, 800.0], planned, time="step")
    assert outlook.assumed
    assert outlook.tau == tuple(range(10))  # 1000, 900, .., 100
    assert outlook.weights[-1] == pytest.approx(0.1)
    assert outlook_of(levels, [1000.0], planned).assumed


def test_from_data_to_noise():
    levels = NoiseLevels()
    outlook = outlook_of(levels, [0.0, 250.0], None, time="step")
    assert len(outlook.tau) == 4
    assert all(w >= 0 for w in outlook.weights)
