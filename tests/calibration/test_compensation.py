"""GOC's inflection set and EOC's prior and judgment: known answers, and in a real model."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from models import draw, tiny_dit, tiny_dit_pipeline

from foca_dit import (
    FoCaCacheConfig,
    Interval,
    StepMask,
    apply_foca_cache,
    foca_cache_stats,
    remove_foca_cache,
    schemes,
)
from foca_dit.adapters.hooks import find_hook
from foca_dit.analysis.sampling import sample
from foca_dit.calibration.calibrated import Calibrated
from foca_dit.calibration.eoc import EOC, _Sums, calibrate_eoc, judged, save_eoc
from foca_dit.calibration.files import load_scheme, save_goc
from foca_dit.calibration.grams import record_grams
from foca_dit.calibration.inflection import direction_cosines, inflection_steps
from foca_dit.calibration.masks import layer_mask
from foca_dit.calibration.means import MeanFeatures, record_means
from foca_dit.calibration.record import Trajectories, recording
from foca_dit.cli.main import main
from foca_dit.clock import make_clock
from foca_dit.origin import Origin
from foca_dit.plan import Plan

STEPS = 10


def drawing(model, seed):
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    scheduler = FlowMatchEulerDiscreteScheduler()
    return lambda: sample(model, scheduler, noise, torch.arange(2), STEPS)


def test_inflections_of_a_path_that_turns_back():
    """Two of three features go up for four steps, then down: the turn is outside the set."""
    path = [0.0, 1, 2, 3, 4, 3, 2, 1]
    values = torch.tensor([path, path, [0.0, 1, 0, 1, 0, 1, 0, 1]])[:, :, None]
    means = MeanFeatures(values, tuple(range(8)), 1)
    assert direction_cosines(means) == pytest.approx([0, 0, 1, 1, 1, -1, 1, 1])
    assert inflection_steps(means) == (2, 3, 4, 6, 7)


def test_means_are_the_mean_over_generations_and_batch(dit):
    means = record_means(dit, "module", [drawing(dit, 1), drawing(dit, 2)])
    assert means.samples == 4
    by_hand = 0
    for seed in (1, 2):
        sink = Trajectories()
        with recording(dit, "module", sink):
            drawing(dit, seed)()
        by_hand = by_hand + {f: x for _, f, x in sink.stacked(STEPS)}[3].mean(1) / 2
    torch.testing.assert_close(means.values[3], by_hand.float())


def test_layer_mask_caches_the_features_that_change_least():
    t = np.arange(6.0)
    grams = []
    for slope in (0.1, 1.0, 0.01, 0.5):
        x = np.stack([np.ones(6), slope * t], axis=1)
        grams.append(x @ x.T)
    mask = layer_mask(np.array(grams), share=0.5)
    assert mask[::2].all()
    assert mask[1].tolist() == [False, True, False, True]
    assert layer_mask(np.array(grams), 0.0).all()
    assert not layer_mask(np.array(grams), 1.0)[1::2].any()
    with pytest.raises(ValueError, match="'share': expected 0 to 1, got 2"):
        layer_mask(np.array(grams), 2)


@pytest.mark.parametrize("kind", ["difference", "ratio"])
def test_priors_of_features_that_grow_by_a_known_factor(kind):
    torch.manual_seed(0)
    forecasts = torch.randn(64, 3, 4, dtype=torch.float64)
    growth = torch.tensor([1.0, 1.1, 0.8, 1.5], dtype=torch.float64)
    sums = _Sums()
    sums.add(forecasts[:40], (forecasts * growth)[:40])
    sums.add(forecasts[40:], (forecasts * growth)[40:])
    prior = sums.prior(kind, ridge=0.0)
    if kind == "ratio":
        torch.testing.assert_close(1 + prior, growth.expand(1, 3, 4))
    else:
        torch.testing.assert_close(prior, (forecasts * (growth - 1)).mean(0, keepdim=True))


def test_judgment_is_the_error_with_and_without():
    forecasts = torch.tensor([[1.0, 2.0]])
    features = torch.tensor([[2.0, 2.0]])
    assert judged(forecasts, features, torch.tensor([[1.5, 1.0]])) == (1.0, 0.25)
    assert judged(forecasts, features, torch.tensor([[0.0, 1.0]])) == (1.0, 4.0)


@pytest.mark.parametrize("prior", ["difference", "ratio"])
def test_only_priors_that_lower_the_calibration_error_are_kept(dit, prior):
    make, judge = [drawing(dit, s) for s in (1, 2, 3)], [drawing(dit, 4)]
    eoc, report = calibrate_eoc(dit, schemes.Reuse(), Interval(2, 1), make, judge, prior=prior)
    assert report["judged"] == 6 * STEPS // 2
    assert report["corrected"] == len(eoc.factors) <= report["judged"]
    assert report["error_with"] <= report["error_without"]
    if prior == "ratio":
        assert report["error_with"] < 0.99 * report["error_without"]
    assert all(step - anchor == 1 for _, anchor, step in eoc.factors)


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_cache_multiplies_forecasts_by_the_factors(dit, granularity, mixed):
    """In one launch, and module by module: the same images, other than without factors."""
    features = 6 if granularity == "module" else 1
    if mixed and features == 1:
        pytest.skip("a mask over one feature is an interval")
    torch.manual_seed(3)
    shape = (1, 4, 8, 8) if granularity == "output" else (1, 16, 32)
    mask = np.ones((STEPS, features), dtype=bool)
    mask[1::2, ::2] = False
    if not mixed:
        mask[1::2] = False
    factors = {
        (f, k - 1, k): 1 + 0.2 * torch.randn(shape)
        for k in range(1, STEPS, 2)
        for f in range(features)
        if f != 1  # one has none
    }
    images = {}
    for name, scheme in {
        "plain": schemes.Reuse(),
        "collapsed": EOC(schemes.Reuse(), factors),
        "by module": EOC(schemes.Reuse(), factors),
    }.items():
        config = FoCaCacheConfig(scheme=scheme, schedule=StepMask(mask), granularity=granularity)
        apply_foca_cache(dit, config)
        find_hook(dit).collapse = name != "by module"
        images[name] = drawing(dit, 9)()
        assert (foca_cache_stats(dit)["mixed_steps"] > 0) == mixed
        remove_foca_cache(dit)
    torch.testing.assert_close(images["collapsed"], images["by module"], rtol=1e-4, atol=1e-4)
    assert (images["collapsed"] - images["plain"]).abs().max() > 1e-3


def test_a_factor_of_a_reused_feature_by_hand(dit):
    """Step 2 at granularity output: the prediction of step 1, times the factor."""
    sink = Trajectories()
    with recording(dit, "output", sink):
        drawing(dit, 9)()
    outputs = next(iter(sink.stacked(STEPS)))[2]
    factor = torch.full((1, 4, 8, 8), 1.25)
    scheme = EOC(schemes.Reuse(), {(0, 1, 2): factor})
    mask = np.ones((3, 1), dtype=bool)
    mask[2] = False
    config = FoCaCacheConfig(scheme=scheme, schedule=StepMask(mask), granularity="output")
    apply_foca_cache(dit, config)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        for t in scheduler.timesteps[:3]:
            out = dit(x, timestep=t.expand(2), class_labels=torch.arange(2)).sample
            x = scheduler.step(out, t, x).prev_sample
    remove_foca_cache(dit)
    torch.testing.assert_close(out, (1.25 * outputs[1]).float(), rtol=1e-5, atol=1e-5)


def test_files_read_back_as_written(dit, tmp_path):
    origin = Origin.of(dit, "module", FlowMatchEulerDiscreteScheduler(), (1000.0, 500.0))
    goc = Calibrated(schemes.GOC(eta=0.8, inflection_steps=(2, 3, 5)), made_for=origin)
    save_goc(goc, tmp_path / "goc.json", {"samples": 4})
    assert load_scheme(tmp_path / "goc.json") == goc
    make, judge = [drawing(dit, 1)], [drawing(dit, 2)]
    eoc, report = calibrate_eoc(
        dit, schemes.FoCa(max_carry=math.inf), Interval(3, 2), make, judge, ridge=0.5
    )
    save_eoc(eoc, tmp_path / "eoc.json", report)
    again = load_scheme(tmp_path / "eoc.json")
    assert again.base == eoc.base
    assert again.origin == eoc.origin
    assert len(again.origin.timesteps) == STEPS
    assert set(again.factors) == set(eoc.factors)
    assert all(torch.equal(again.factors[k], eoc.factors[k]) for k in eoc.factors)
    assert {f.suffix for f in tmp_path.iterdir()} == {".json", ".safetensors"}
    tensors = tmp_path / "eoc.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"load_scheme .*{tensors}: expected a safetensors file"):
        load_scheme(tmp_path / "eoc.json")
    (tmp_path / "other.json").write_text('{"format": "x"}')
    with pytest.raises(ValueError, match="expected the format 'foca-goc' or 'foca-eoc', got 'x'"):
        load_scheme(tmp_path / "other.json")


@pytest.mark.parametrize(
    "text", ["{", '{"format": "foca-goc"}', '{"format": "foca-goc", "scheme": {"name": "x"}}', "[]"]
)
def test_files_that_are_broken_are_refused_by_name(tmp_path, text):
    file = tmp_path / "broken.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"load_scheme {file}: expected"):
        load_scheme(file)


def test_files_refuse_a_model_and_a_sampler_that_they_do_not_know(dit, tmp_path):
    """As tuned plans do: by the model when it is applied, by the timesteps as they come."""
    means = record_means(dit, "module", [drawing(dit, 1)])
    goc = schemes.GOC(1.2, inflection_steps(means))
    flow = FlowMatchEulerDiscreteScheduler()
    eoc, _ = calibrate_eoc(
        dit, schemes.Reuse(), Interval(2), [drawing(dit, 1)], [drawing(dit, 2)], scheduler=flow
    )
    origin = Origin.of(dit, "module", flow, means.timesteps)
    assert eoc.origin == origin
    save_goc(Calibrated(goc, made_for=origin), tmp_path / "goc.json", {})
    save_eoc(eoc, tmp_path / "eoc.json", {})
    for name in ("goc.json", "eoc.json"):
        config = FoCaCacheConfig(
            scheme=load_scheme(tmp_path / name), cache_interval=2, granularity="module"
        )
        with pytest.raises(ValueError, match="calibrated for a model with other weights"):
            apply_foca_cache(tiny_dit(seed=1), config)
        with pytest.raises(ValueError, match="for the granularity module, got stack"):
            apply_foca_cache(dit, replace(config, granularity="stack"))
        pipeline = tiny_dit_pipeline()
        pipeline.transformer = dit
        with pytest.raises(ValueError, match="sampler FlowMatchEulerDiscreteScheduler, got DDIM"):
            apply_foca_cache(pipeline, config)
        apply_foca_cache(dit, config)
        same = drawing(dit, 1)()
        with pytest.raises(ValueError, match="got timestep"):
            draw(dit, steps=STEPS + 1)
        remove_foca_cache(dit)
        bare = replace(config, scheme=replace(config.scheme, made_for=None))
        apply_foca_cache(dit, bare)
        torch.testing.assert_close(drawing(dit, 1)(), same, rtol=0, atol=0)
        remove_foca_cache(dit)
        data = json.loads((tmp_path / name).read_text())
        del data["calibrated_on"]  # a file of an older version
        (tmp_path / name).write_text(json.dumps(data))
        with pytest.raises(ValueError, match="calibrate again"):
            load_scheme(tmp_path / name)


def test_a_calibrated_scheme_is_exported_as_its_base_and_factors_are_refused():
    goc, tau = schemes.GOC(eta=0.8, inflection_steps=(2, 3, 5)), range(8)
    plan = Plan.build(Calibrated(goc), Interval(3), tau)
    assert Plan.from_json(plan.to_json()) == plan == Plan.build(goc, Interval(3), tau)
    factors = {(0, 2, 3): torch.ones(1, 3)}
    with pytest.raises(TypeError, match=r"'scheme': expected .* a plan cannot hold its factors"):
        Plan.build(EOC(schemes.Reuse(), factors), Interval(3), tau)


def test_forecasts_are_calibrated_in_the_time_of_the_run(dit, tmp_path):
    """At granularity output the first forecast is that of the recorded predictions, by hand."""
    base, calls = schemes.TaylorSeer(1), [drawing(dit, 1)]
    eocs = {
        time: calibrate_eoc(dit, base, Interval(3, 2), calls, calls, "output", time=time)[0]
        for time in ("step", "log_snr")
    }
    sink = Trajectories()
    with recording(dit, "output", sink) as state:
        drawing(dit, 1)()
        clock = make_clock("log_snr", state.levels)
        tau = [clock(t, i) for i, t in enumerate(state.timesteps)]
    x = next(iter(sink.stacked(STEPS)))[2]
    for time, t in (("step", range(STEPS)), ("log_snr", tau)):
        q = x[1] + (x[1] - x[0]) * (t[2] - t[1]) / (t[1] - t[0])
        sums = _Sums()
        sums.add(q, x[2])
        expected = (1 + sums.prior("ratio", 1.0)).float()
        torch.testing.assert_close(eocs[time].factors[0, 1, 2], expected)
    save_eoc(eocs["log_snr"], tmp_path / "eoc.json", {})
    scheme = load_scheme(tmp_path / "eoc.json")
    assert FoCaCacheConfig(scheme=scheme, time="log_snr").resolve().scheme == scheme
    with pytest.raises(ValueError, match="'time': expected 'log_snr', in which scheme 'eoc'"):
        FoCaCacheConfig(scheme=scheme, time="step")
    with pytest.raises(ValueError, match=r"'time': expected one of .*, got 'x'"):
        calibrate_eoc(dit, base, Interval(3), calls, calls, time="x")


def test_factors_move_to_a_device_once():
    factors = {(0, 1, 2): torch.ones(1, 3)}
    scheme = EOC(schemes.Reuse(), factors)
    assert scheme.factor(0, (0, 1), 2, torch.device("cpu")) is factors[0, 1, 2]
    moved = scheme.factor(0, (0, 1), 2, torch.device("meta"))
    assert moved.device.type == "meta"
    assert scheme.factor(0, (0, 1), 2, torch.device("meta")) is moved
    assert scheme.factor(0, (0, 2), 3, torch.device("meta")) is None


def test_priors_do_not_overwrite_their_own_file(tmp_path, capsys):
    out = tmp_path / "eoc.safetensors"
    assert main(["calibrate", "eoc", "--out", str(out)]) == 2
    assert "expected a name for the JSON file that does not end in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_calibrations(dit):
    some = [drawing(dit, 1)]
    with pytest.raises(ValueError, match="'prior': expected one of"):
        calibrate_eoc(dit, schemes.Reuse(), Interval(2), some, some, prior="mean")
    with pytest.raises(ValueError, match="to make priors from and to judge on"):
        calibrate_eoc(dit, schemes.Reuse(), Interval(2), some, [])
    with pytest.raises(ValueError, match="expected at least one"):
        record_means(dit, "module", [])


def test_mask_from_a_real_model(dit):
    grams = record_grams(dit, "module", [drawing(dit, 1)])
    mask = layer_mask(grams.grams, 0.5)
    assert mask.shape == (STEPS, 6)
    assert (mask.sum(1) == [6, 3] * (STEPS // 2)).all()


def test_factors_of_another_resolution_are_refused(dit):
    scheme = EOC(schemes.Reuse(), {(0, 3, 4): torch.ones(1, 4, 32)})
    mask = np.ones((STEPS, 1), dtype=bool)
    mask[2] = mask[4] = False
    config = FoCaCacheConfig(scheme=scheme, schedule=StepMask(mask), granularity="stack")
    apply_foca_cache(dit, config)
    with pytest.raises(ValueError, match=r"size \[16, 32\] of feature 0, got \[4, 32\]"):
        drawing(dit, 1)()
    remove_foca_cache(dit)


def test_goc_on_computed_jumps_with_eta_1_is_taylor_inside_the_set():
    torch.manual_seed(0)
    x = torch.randn(12, 3, dtype=torch.float64).cumsum(0)
    full = (0, 1, 5, 9)
    goc = schemes.run_reference(schemes.GOC(1.0, range(12), "computed"), x, full)
    taylor = schemes.run_reference(schemes.TaylorSeer(1), x, full)
    torch.testing.assert_close(goc, taylor)
    some = schemes.run_reference(schemes.GOC(0.5, (2, 3, 6), "computed"), x, full)
    slope = x[1] - x[0]
    torch.testing.assert_close(some[3], x[1] + (0.5 + 0.25) * slope)
    torch.testing.assert_close(some[4], some[3])  # outside the set nothing is added
    torch.testing.assert_close(some[6], x[5] + 0.5 * (x[5] - x[1]) / 4)
