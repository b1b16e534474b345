"""The shipped models, and the code that trained them."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from foca_dit import FoCaCacheConfig, Interval
from foca_dit.analysis.metrics import psnr
from foca_dit.evaluation.own import cached, fewer_steps
from foca_dit.evaluation.trained import SETTINGS, load_trained

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/fashion_dit"


@pytest.fixture(scope="module", autouse=True)
def _example():
    sys.path.insert(0, str(EXAMPLE))
    yield
    sys.path.remove(str(EXAMPLE))


@pytest.mark.parametrize(("name", "megabytes"), [("flow", 11), ("noise", 8), ("video", 4)])
def test_every_shipped_model_is_small_and_gains_from_the_cache(name, megabytes):
    known = SETTINGS[name]
    files = (ROOT / known.folder / "transformer").glob("*.safetensors")
    assert sum(file.stat().st_size for file in files) <= megabytes * 1e6
    trained = load_trained(ROOT / known.folder)
    setting = trained.setting(steps=16, images=4, guidance_scale=known.guidance_scale)
    full = setting.draw().images
    config = FoCaCacheConfig(schedule=Interval(2), time="log_snr")  # 9 full steps
    cache = psnr(cached(setting, config).images, full)
    assert cache > psnr(fewer_steps(setting, 9).images, full) + 2


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="transformer/ and scheduler/"):
        load_trained(tmp_path)


def test_garments_move_where_they_are_told_to():
    """A bright dot in the middle of the garment: its centre of mass is the corner, moved."""
    import moving
    from judge_video import centres

    generator = torch.Generator().manual_seed(0)
    corners = moving.positions(50, generator)
    room = moving.FRAME_SIZE - moving.GARMENT_SIZE
    assert corners.min() >= 0
    assert corners.max() <= room
    velocity = corners.diff(dim=1)
    turned = (velocity[:, 1:] - velocity[:, :-1]).abs().amax(2) > 1e-4
    assert 0.05 < turned.float().mean() < 0.5  # straight on, but for the walls
    images = torch.full((50, 1, 28, 28), -1.0)
    images[:, :, 12:16, 12:16] = 1
    clips = moving.moving_clips(images, torch.Generator().manual_seed(0))
    expected = corners + (moving.GARMENT_SIZE - 1) / 2
    torch.testing.assert_close(centres(clips), expected, atol=0.05, rtol=0)


def test_losses_vanish_for_the_exact_prediction():
    """Data that is 0 everywhere: what is mixed is the noise alone, times its level."""
    from diffusers import DDIMScheduler
    from train_noise import noise_prediction_loss
    from training import flow_matching_loss

    data, labels = torch.zeros(64, 1, 4, 4), torch.zeros(64, dtype=torch.long)
    abar = DDIMScheduler(beta_schedule="linear").alphas_cumprod

    def noise(x, timestep, class_labels):
        assert 0 < (class_labels == 10).float().mean() < 0.3  # some labels are dropped
        return SimpleNamespace(sample=x / (1 - abar[timestep]).sqrt().view(-1, 1, 1, 1))

    generator = torch.Generator().manual_seed(0)
    assert noise_prediction_loss(noise, data, labels, abar, generator) < 1e-8
    seen = []

    def velocity(x, timestep):
        seen.append(timestep / 1000)
        return x / seen[-1].view(-1, 1, 1, 1)

    assert flow_matching_loss(velocity, data, generator) < 1e-8
    assert flow_matching_loss(velocity, data, generator, shift=3.0) < 1e-8
    medians = [sigma.median() for sigma in seen]
    assert medians == pytest.approx([0.5, 0.75], abs=0.03)


def test_the_noise_model_starts_from_blocks_of_the_flow_model():
    from train_noise import KEPT_BLOCKS, START, pruned

    whole = load_trained(START.parent).model.state_dict()
    part = pruned(START)
    name = "transformer_blocks.{}.attn1.to_q.weight"
    for new, old in enumerate(KEPT_BLOCKS):
        torch.testing.assert_close(part[name.format(new)], whole[name.format(old)])
    assert name.format(len(KEPT_BLOCKS)) not in part
