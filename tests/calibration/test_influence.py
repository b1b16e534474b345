"""What calibration measures: what the sampler makes of an error, and inner products of features."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from foca_dit.calibration.influence import sampler_influence
from foca_dit.calibration.record import Trajectories

STEPS = 12


def test_sampler_influence_is_the_step_in_sigma():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    expected = np.abs(np.diff(scheduler.sigmas.numpy()))
    np.testing.assert_allclose(sampler_influence(scheduler, STEPS), expected, rtol=1e-4)


@pytest.mark.parametrize(("dynamic", "begin"), [(False, 0), (True, 0), (False, 3)])
def test_sampler_influence_is_that_of_the_loop_that_was_run(dynamic, begin):
    """Pipelines hand the scheduler noise levels of theirs, and img2img enters half-way."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic)
    total = STEPS + begin
    levels = np.linspace(1.0, 1 / total, total)
    scheduler.set_timesteps(total, sigmas=levels, mu=0.8 if dynamic else None)
    scheduler.set_begin_index(begin)
    expected = np.abs(np.diff(scheduler.sigmas.numpy()))[begin:]
    found = sampler_influence(scheduler, STEPS)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(sampler_influence(scheduler, STEPS), found)  # it is not touched


def test_a_multistep_sampler_is_run_on_the_loops_own_levels():
    other = UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    other.set_timesteps(STEPS)
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(STEPS)
    own = sampler_influence(scheduler, STEPS)
    scheduler.timesteps, scheduler.sigmas = other.timesteps, other.sigmas
    found = sampler_influence(scheduler, STEPS)
    np.testing.assert_allclose(found, sampler_influence(other, STEPS))
    assert not np.allclose(found, own, rtol=0.1)


def test_sampler_influence_of_ddim_is_the_effect_on_its_final_sample():
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    timesteps = scheduler.timesteps.clone()

    def run(bump):
        x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        for i, t in enumerate(timesteps):
            out = 0.3 * torch.ones_like(x) + bump * (i == 4)
            x = scheduler.step(out, t, x).prev_sample
        return float(x)

    assert sampler_influence(scheduler, STEPS)[4] == pytest.approx(abs(run(1) - run(0)), rel=1e-4)


def test_sampler_influence_is_that_of_small_errors_where_the_sampler_clips():
    clipping, plain = (DDIMScheduler(clip_sample=clip) for clip in (True, False))
    expected = sampler_influence(plain, STEPS)
    assert expected.max() > 1  # errors of 1 would be clipped
    np.testing.assert_allclose(sampler_influence(clipping, STEPS), expected, rtol=1e-9)


@pytest.mark.parametrize("cls", [DDPMScheduler, EulerAncestralDiscreteScheduler])
def test_a_sampler_that_adds_noise_is_refused(cls):
    with pytest.raises(ValueError, match=f"expected a deterministic one, got {cls.__name__}"):
        sampler_influence(cls(), STEPS)


@pytest.mark.parametrize("elements", [64 * 96, 64 * 96 * 3 + 96])
@pytest.mark.parametrize("channels", [96, 32])
def test_a_feature_read_at_a_stride_has_the_inner_products_of_the_whole(elements, channels):
    """Up to sampling; a large feature beside a small one would otherwise count for less."""
    generator = torch.Generator().manual_seed(1)
    size = torch.ones(channels)
    size[1::2] = 30.0  # a stride of 2 or 4 would read none of the large channels
    x = size * torch.randn(3, elements // channels, channels, generator=generator)
    sink = Trajectories(max_elements=64 * 96 // 2)
    for step in range(3):
        sink(step, 0, 0, x[step])
    (_, _, read) = next(sink.stacked(3))
    assert read[0].numel() <= 64 * 96 // 2
    assert read.square().sum().item() == pytest.approx(x.square().sum().item(), rel=0.1)
