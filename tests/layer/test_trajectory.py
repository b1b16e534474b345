"""Steps, time variables and breaks, from bare timesteps and samples."""

import math

import pytest
import torch

from foca_dit.clock import NoiseLevels, make_clock
from foca_dit.trajectory import Trajectory, fingerprint


def trajectory(time="step"):
    return Trajectory(make_clock(time, NoiseLevels()))


def follow(path, timesteps, sample):
    return [path.advance(t, sample) for t in timesteps]


def test_a_new_timestep_is_a_new_step_and_the_same_one_is_not():
    path = trajectory()
    assert follow(path, [900.0, 900.0, 800.0, 700.0, 700.0], torch.ones(4)) == [0, 0, 1, 2, 2]
    assert path.tau == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("timesteps", [(900.0, 800.0, 850.0), (10.0, 20.0, 5.0)])
def test_a_move_against_the_direction_breaks(timesteps):
    path, x = trajectory(), torch.ones(4)
    follow(path, timesteps[:2], x)
    assert "against the direction" in path.break_with(timesteps[2], x)
    assert path.break_with(timesteps[1], x) is None


@pytest.mark.parametrize(
    "other", [torch.ones(5), torch.ones(4, dtype=torch.float64), torch.ones(2, 2)]
)
def test_another_kind_of_sample_breaks(other):
    path = trajectory()
    path.advance(900.0, torch.ones(4))
    assert "shape, dtype or device" in path.break_with(800.0, other)


def test_a_sample_from_elsewhere_breaks_and_a_solver_step_does_not():
    noise, other = torch.randn(2, 3, 64, 64).unbind()
    path = trajectory()
    path.advance(900.0, noise)
    assert "does not continue" in path.break_with(800.0, other)
    assert "does not continue" in path.break_with(800.0, noise * math.nan)
    # A step of a 4-step sampler: a quarter of the way from noise to data.
    assert path.break_with(800.0, 0.75 * noise + 0.25 * torch.ones(3, 64, 64)) is None


def test_another_prompt_breaks_and_the_same_one_in_another_tensor_does_not():
    path, x, prompt = trajectory(), torch.ones(4), torch.arange(5000.0)
    path.advance(900.0, x, [prompt])
    for same in ([prompt], [prompt.clone()]):
        assert path.break_with(800.0, x, same) is None
    changed = prompt.clone()
    changed[4:8] = 0.0
    for other in ([changed], [], [prompt, prompt], [prompt[:4999]], [prompt.to(torch.int64)]):
        assert "prompt" in path.break_with(800.0, x, other)
    prompt[0] = float("nan")  # in padding, say
    path.advance(850.0, x, [prompt])
    assert path.break_with(800.0, x, [prompt.clone()]) is None
    prompt[:9] = -1.0  # written to, as a server does with its buffers
    assert "prompt" in path.break_with(800.0, x, [prompt])
    path.advance(800.0, x, [prompt])
    assert path.break_with(700.0, x, [prompt]) is None


def test_conditions_are_read_once_a_call(monkeypatch):
    read = []
    monkeypatch.setattr(
        "foca_dit.trajectory.fingerprint", lambda value: (read.append(value), fingerprint(value))[1]
    )
    path, x, prompt = trajectory(), torch.ones(4), torch.arange(50.0)
    path.advance(900.0, x, [prompt])
    read.clear()
    for timestep, given, times in ((800.0, prompt, 0), (700.0, prompt.clone(), 1)):
        assert path.break_with(timestep, x, [given]) is None
        path.advance(timestep, x, [given])
        assert sum(value is given for value in read) == times
        assert sum(value is x for value in read) == 1
        read.clear()


@torch.inference_mode()
def test_writes_to_inference_tensors_are_seen():
    path, x, prompt = trajectory(), torch.ones(4), torch.arange(50.0)
    path.advance(900.0, x, [prompt])
    assert path.break_with(800.0, x, [prompt]) is None
    prompt.mul_(2.0)
    assert "prompt" in path.break_with(800.0, x, [prompt])


def test_a_request_of_its_own_may_change_its_prompt():
    path, x = Trajectory(make_clock("step", NoiseLevels()), watch=False), torch.ones(4)
    path.advance(900.0, x, [x])
    assert path.break_with(800.0, x, [2 * x]) is None


def test_time_variables():
    flow = NoiseLevels(timestep_scale=1000.0)
    assert make_clock("sigma", flow)(250.0, 7) == 0.25
    assert make_clock("log_snr", flow)(500.0, 7) == pytest.approx(0.0)
    assert make_clock(lambda t: -t, flow)(250.0, 7) == -250.0
    unit = NoiseLevels(timestep_scale=1.0)
    assert make_clock("sigma", unit)(0.25, 7) == 0.25
    ddpm = NoiseLevels(alpha_bar=(0.9, 0.5, 0.1))
    assert make_clock("log_snr", ddpm)(1.0, 7) == pytest.approx(0.0)
    assert make_clock("log_snr", ddpm)(0.0, 7) > make_clock("log_snr", ddpm)(0.5, 7) > 0
