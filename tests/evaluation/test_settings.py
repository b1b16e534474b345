"""Settings that are not the flow model's: noise prediction under DDIM, and video."""

import math
from importlib.util import find_spec
from types import SimpleNamespace

import diffusers
import pytest
import torch

from foca_dit import schemes
from foca_dit.analysis.metrics import frame_psnr, mean_psnr, temporal_psnr
from foca_dit.analysis.sampling import conditions
from foca_dit.evaluation import own
from foca_dit.evaluation.own import SOLVERS, adaptive
from foca_dit.evaluation.placed import meancache
from foca_dit.evaluation.rival import Rival
from foca_dit.evaluation.setting import Absent
from foca_dit.evaluation.suite import RIVALS, Results, Selection, run
from foca_dit.evaluation.tables import report
from foca_dit.evaluation.trained import Trained


@pytest.fixture(scope="session")
def noise_model(dit):
    return Trained(dit, diffusers.DDIMScheduler(clip_sample=False))


@pytest.fixture(scope="session")
def video_model():
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        text_dim=8,
        freq_dim=32,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return Trained(model, scheduler, (1, 3, 12, 12), torch.randn(5, 1, 8))


def row(name: str) -> Rival:
    return next(rival for rival in RIVALS if rival.name == name)


def test_the_null_class_is_the_last_row(dit, video_model):
    labels = torch.tensor([0, 2])
    assert conditions(dit, labels, True)["class_labels"].tolist() == [0, 2, 10, 10]
    told = conditions(video_model.model, labels, True, video_model.tokens)["encoder_hidden_states"]
    torch.testing.assert_close(told, video_model.tokens[[0, 2, 4, 4]])


@pytest.mark.parametrize("name", ["noise_model", "video_model"])
def test_caches_run_and_count(name, request):
    """Full steps counted inside the model: the adaptive rows keep the budget, a uniform one too."""
    trained = request.getfixturevalue(name)
    setting = trained.setting(steps=14, images=2, guidance_scale=1.5)
    full = setting.draw()
    assert full.cost.full_steps == 14
    assert full.images.shape == setting.noise.shape
    for rival, budget in ((row("FoCa, adaptive interval"), 7), (row("TaylorSeer-1"), 8)):
        outcome = rival.run(setting, budget)
        assert 1 < outcome.cost.full_steps <= budget
        error = (outcome.images - full.images).norm() / full.images.norm()
        assert 0 < error < 0.1, rival.name


@pytest.mark.parametrize("budget", [12, 11, 9])  # of 50: with a warm-up of 3, of 2, of 3
@pytest.mark.parametrize("name", ["TaylorSeer-2, as published", "TaylorSeer-3, as published"])
def test_rows_as_published_are_those_of_the_public_code(noise_model, monkeypatch, name, budget):
    """Its loop by hand: one gap for all orders, no difference before the warm-up's last step."""
    monkeypatch.setattr(own, "cached", lambda setting, config, **details: config)
    config = row(name).run(noise_model.setting(steps=50, images=2), budget)
    full, warmup = config.schedule.full_steps(50), config.schedule.warmup
    assert len(full) == budget
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors: list[torch.Tensor] = []
    anchor, expected = 0, []
    for step, value in enumerate(features):
        if step in full:
            latest = [value]
            for known in factors[: config.scheme.order] if step > warmup - 2 else []:
                latest.append((latest[-1] - known) / (step - anchor))
            factors, anchor = latest, step
        terms = [f * (step - anchor) ** i / math.factorial(i) for i, f in enumerate(factors)]
        expected.append(sum(terms))
    used = schemes.run_reference(config.scheme, features, full)
    torch.testing.assert_close(used, torch.stack(expected))


def test_hicache_knows_the_warm_up(noise_model, monkeypatch):
    monkeypatch.setattr(own, "cached", lambda setting, config, **details: config)
    for budget, warmup in ((12, 3), (11, 2)):
        config = row("HiCache-2").run(noise_model.setting(steps=50, images=2), budget)
        assert config.scheme.warmup == config.schedule.warmup == warmup


def test_the_adaptive_interval_knows_the_steps_of_ddim(noise_model):
    """Without the scheduler's timesteps a budget is missed; DDIM's lie between 0 and 999."""
    outcome = adaptive(noise_model.setting(steps=20, images=2), 9)
    assert outcome.cost.full_steps == 9
    assert outcome.details["taken"][:2] == [0, 1]


class Gaussian(torch.nn.Module):
    """The exact noise prediction for data of standard deviation 2."""

    def __init__(self, scheduler):
        super().__init__()
        self.config = SimpleNamespace(in_channels=1, sample_size=4, num_embeds_ada_norm=10)
        self.abar = scheduler.alphas_cumprod

    def variance(self, t):
        return 4 * self.abar[t] + 1 - self.abar[t]

    def forward(self, x, timestep, class_labels):
        t = timestep[0].long()
        return SimpleNamespace(sample=x * (1 - self.abar[t]).sqrt() / self.variance(t))


@pytest.mark.parametrize("rival", SOLVERS, ids=lambda rival: rival.name)
def test_solvers_take_the_form_that_the_model_needs(rival):
    """In many steps they find the exact solution of a Gaussian; in the flow form they would not."""
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    model = Gaussian(scheduler)
    setting = Trained(model, scheduler).setting(steps=200, images=4)
    errors = []
    for budget in (20, 100):
        first = 1000 - 1000 // budget if rival.name == "fewer steps" else 999
        exact = setting.noise * 2 / model.variance(first).sqrt()
        errors.append(float((rival.run(setting, budget).images - exact).abs().mean()))
    assert errors[1] < 0.03
    assert errors[1] < errors[0]


def test_rivals_that_cannot_are_absent(noise_model, video_model):
    with pytest.raises(Absent, match="flow matching"):
        meancache(noise_model.setting(steps=8, images=2), 4)
    peers = ("cache-dit FoCa",) if find_spec("cache_dit") else ()
    for name in ("TeaCache", "L2C-style mask", "SmoothCache", "LeMiCa", *peers):
        with pytest.raises(Absent, match="WanTransformer3DModel"):
            row(name).run(video_model.setting(steps=8, images=2), 5)


def test_only_a_flow_model_has_a_shift(noise_model, video_model):
    assert (noise_model.shift, video_model.shift) == (None, 3.0)
    with pytest.raises(ValueError, match="argument shift: expected none for DDIMScheduler"):
        noise_model.setting(shift=2.0)
    other = video_model.setting(shift=1.5, steps=4)
    assert other.sampler().config.shift == other.shift == 1.5
    assert video_model.setting(steps=4).shift == 3.0
    assert video_model.setting(steps=4).sigmas[1] == pytest.approx(3 / 4 * 3 / (1 + 2 * 3 / 4), 0.1)


def test_eval_measures_clips(video_model, tmp_path):
    selection = Selection(
        (4,), 2, shifts=(video_model.shift,), steps=8, rivals=(row("reuse (FORA)"),)
    )
    results = Results(tmp_path / "rows.json", "video")
    run(video_model, selection, results)
    full, reuse = results.rows
    assert full["temporal_psnr"] is full["frame_psnr"][0] is None
    assert len(reuse["frame_psnr"]) == 3
    assert math.isfinite(reuse["temporal_psnr"])
    assert "shift 3" in report(results.rows)


def test_the_psnr_of_each_image_weighs_them_alike():
    images = torch.zeros(2, 1, 4, 4)
    off = images + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert mean_psnr(off, images) == pytest.approx(10 * math.log10(4) + (20 + 40) / 2, abs=1e-4)
    assert mean_psnr(images, images) == math.inf


def test_metrics_of_clips():
    clip = torch.zeros(2, 1, 4, 5, 5)
    still = clip + 0.1  # the same error in every frame: no motion in it
    assert frame_psnr(still, clip) == pytest.approx([10 * math.log10(4 / 0.01)] * 4, abs=1e-4)
    assert temporal_psnr(still, clip) == math.inf
    flicker = clip + 0.1 * torch.tensor([1.0, -1, 1, -1]).view(1, 1, 4, 1, 1)
    assert temporal_psnr(flicker, clip) == pytest.approx(10 * math.log10(4 / 0.04), abs=1e-4)
    with pytest.raises(ValueError, match=r"expected \[B, C, F, H, W\]"):
        frame_psnr(clip[0], clip[0])
