"""Recording, tuning and the plan file, on real diffusers models with small random weights."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats, remove_foca_cache
from foca_dit.analysis.metrics import psnr
from foca_dit.analysis.sampling import sample
from foca_dit.calibration.eoc import calibrate_eoc
from foca_dit.calibration.fit import forecast_error
from foca_dit.calibration.grams import record_grams
from foca_dit.calibration.influence import model_influence, sampler_influence
from foca_dit.calibration.record import Trajectories, recording
from foca_dit.calibration.tune import Seeds, build_plan, measure, tune
from foca_dit.plan import Plan
from foca_dit.schedules import Interval
from foca_dit.schemes import Reuse
from foca_dit.tuned import TunedPlan

STEPS = 12


def noise(seed: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def drawing(model, scheduler=None, steps=STEPS, guidance=1.0):
    scheduler = scheduler or FlowMatchEulerDiscreteScheduler()
    labels = torch.arange(2)
    return lambda seed: sample(model, scheduler, noise(seed), labels, steps, guidance)


@pytest.fixture
def plan(dit):
    draw = drawing(dit)
    measured = measure(dit, FlowMatchEulerDiscreteScheduler(), draw, "stack", [1], probes=3)
    return tune(dit, draw, measured, budget=5, seeds=Seeds([1], [2], [3]))


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
def test_recording_changes_nothing_and_reads_every_feature(dit, granularity):
    draw, sink = drawing(dit), Trajectories()
    with recording(dit, granularity, sink) as state:
        images = draw(1)
        assert len(state.timesteps) == STEPS
    assert torch.equal(images, draw(1))
    values = {feature: x for _, feature, x in sink.stacked(STEPS)}
    assert sorted(values) == list(range({"module": 6, "stack": 1, "output": 1}[granularity]))
    if granularity == "output":
        # Euler: the images are the noise plus the outputs times the steps in sigma.
        sigmas = FlowMatchEulerDiscreteScheduler()
        sigmas.set_timesteps(STEPS)
        moves = torch.tensor([float(b - a) for a, b in itertools.pairwise(sigmas.sigmas)])
        rebuilt = noise(1) + torch.einsum("s,s...->...", moves.double(), values[0])
        torch.testing.assert_close(rebuilt.float(), images, rtol=1e-4, atol=1e-4)


def test_gram_matrices_are_the_inner_products_of_the_features(dit):
    draw, sink = drawing(dit), Trajectories()
    with recording(dit, "module", sink):
        draw(1)
    seen = []
    grams = record_grams(dit, "module", [lambda: draw(1)], done=lambda: seen.append(1))
    assert seen == [1]
    for _, feature, x in sink.stacked(STEPS):
        direct = torch.einsum("i...,j...->ij", x, x).numpy()
        np.testing.assert_allclose(grams.grams[feature], direct, rtol=1e-9)
        error = (2 * x[4] - x[2] - x[6]).square().sum().item()
        assert forecast_error(grams.grams[feature], [4, 2], 6, [2, -1]) == pytest.approx(error)
    both = record_grams(dit, "module", [lambda: draw(1), lambda: draw(2)])
    other = record_grams(dit, "module", [lambda: draw(2)])
    np.testing.assert_allclose(both.grams, grams.grams + other.grams, rtol=1e-9)


def test_recording_refuses_generations_that_differ(dit):
    short = drawing(dit, steps=5)
    with pytest.raises(ValueError, match="expected the same timesteps in all, got 12 steps"):
        record_grams(dit, "stack", [lambda: drawing(dit)(1), lambda: short(1)])
    with pytest.raises(ValueError, match="expected at least one"):
        record_grams(dit, "stack", [])
    with pytest.raises(ValueError, match="'generations': expected generations that run the model"):
        record_grams(dit, "stack", [lambda: None])
    with pytest.raises(ValueError, match="'make', 'judge': expected the same timesteps in all"):
        calibrate_eoc(dit, Reuse(), Interval(2), [lambda: drawing(dit)(1)], [lambda: short(2)])


def test_model_influence_at_granularity_output_is_near_the_samplers(dit):
    """Nothing stands between the output and the sampler but the later steps."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    draw = drawing(dit, scheduler)
    gram = record_grams(dit, "output", [lambda: draw(1)]).total()
    sampled = sampler_influence(scheduler, STEPS)
    measured = model_influence(dit, "output", gram, sampled, lambda: draw(1), [STEPS - 2])
    assert measured[STEPS - 2] == pytest.approx(sampled[STEPS - 2], rel=0.2)
    assert not np.allclose(measured, sampled, rtol=1e-6)


def test_a_tuned_plan_runs_as_placed_and_beats_reuse(dit, plan, tmp_path):
    file = tmp_path / "plan.json"
    plan.save(file)
    draw = drawing(dit)
    full = draw(9)
    decibels = {}
    schedule = FoCaCacheConfig(plan=file).resolve().schedule
    for name, config in {
        "plan": FoCaCacheConfig(plan=file),
        "reuse": FoCaCacheConfig(scheme="reuse", schedule=schedule, granularity="stack"),
    }.items():
        apply_foca_cache(dit, config)
        images = draw(9)
        assert foca_cache_stats(dit)["full_steps"] == 5
        assert torch.equal(images, draw(9))  # and again
        remove_foca_cache(dit)
        decibels[name] = psnr(images, full)
    assert decibels["plan"] > decibels["reuse"]
    assert plan.report["check_psnr"] == pytest.approx(decibels["plan"], abs=4)


def test_images_equal_to_the_full_run_can_be_written(dit, tmp_path):
    """Their PSNR is infinite, and JSON has no infinity."""
    draw, still = drawing(dit), torch.zeros(1, 4, 8, 8)

    def indifferent(seed):
        draw(seed)
        return still

    measured = measure(dit, FlowMatchEulerDiscreteScheduler(), draw, "stack", [1], probes=0)
    plan = tune(dit, indifferent, measured, budget=4, seeds=Seeds([1], [2], [3]))
    plan.save(tmp_path / "plan.json")
    report = TunedPlan.load(tmp_path / "plan.json").report
    assert report["check_psnr"] is None
    assert {placed["psnr"] for placed in report["placements"].values()} == {None}
    with pytest.raises(ValueError, match=r"'budget': expected from 2 to 11 full steps \(of 12\)"):
        tune(dit, draw, measured, budget=12, seeds=Seeds([1], [2], [3]))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_candidate_whose_images_are_not_finite_is_not_chosen(dit, broken):
    draw, times = drawing(dit), iter(range(9))

    def first_candidate_breaks(seed):
        images = draw(seed)
        return images * broken if next(times) == 1 else images  # the full run comes before

    measured = measure(dit, FlowMatchEulerDiscreteScheduler(), draw, "stack", [1], probes=0)
    report = tune(dit, first_candidate_breaks, measured, 4, Seeds([1], [2], [3])).report
    first, *others = report["placements"]
    assert report["placements"][first]["psnr"] is None
    assert report["chosen"] in others
    assert report["check_psnr"] is not None


def test_forecasts_of_a_plan_are_the_fitted_combinations(dit, plan):
    """The weights, applied to recorded features by hand, at the first skipped step."""
    sink = Trajectories()
    draw = drawing(dit)
    with recording(dit, "stack", sink):
        draw(9)
    x = next(iter(sink.stacked(STEPS)))[2]
    tables = plan.plan
    step = next(i for i in range(STEPS) if not tables.is_full(i))
    history = []
    for i in range(step):
        history = [x[i], *history][:3]
    expected = sum(w * h for w, h in zip(tables.weights(step), history, strict=False))
    cached = Trajectories()
    apply_foca_cache(dit, FoCaCacheConfig(plan=plan))
    state = dit._diffusers_hook.get_hook("foca_cache").state
    original = type(state).leave

    def leave(branch):
        if branch.trajectory.step == step:
            cached(0, 0, 0, branch.histories.forecast(0))
        original(state, branch)

    state.leave = leave
    draw(9)
    remove_foca_cache(dit)
    got = next(iter(cached.stacked(1)))[2][0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_plan_file_reads_back_as_written(plan, tmp_path):
    file = tmp_path / "plan.json"
    plan.save(file)
    again = TunedPlan.load(file)
    assert again.plan == plan.plan
    assert again.origin == plan.origin
    assert again.report == plan.report
    assert Plan.from_json(file.read_text()) == plan.plan  # any engine can read it
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupted_save_leaves_the_old_file(plan, tmp_path, monkeypatch):
    file = tmp_path / "plan.json"
    file.write_text("old")

    whole = type(file).write_bytes

    def interrupted(self, content):
        whole(self, content[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(type(file), "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plan.save(file)
    monkeypatch.undo()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_plan_refuses_another_run(dit, plan, guidance):
    def refused(match, model=dit, **other):
        apply_foca_cache(model, FoCaCacheConfig(plan=plan))
        with pytest.raises(ValueError, match=match):
            drawing(model, guidance=guidance, **other)(9)
        remove_foca_cache(model)

    refused("calibrated for 12 steps of FlowMatchEulerDiscreteScheduler.*got timestep", steps=13)
    refused("got timestep", scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    apply_foca_cache(dit, FoCaCacheConfig(plan=plan))

    @torch.no_grad()
    def from_the_fourth_step():
        for timestep in plan.origin.timesteps[3:5]:
            dit(noise(1), timestep=torch.tensor([timestep] * 2), class_labels=torch.arange(2))

    with pytest.raises(ValueError, match="leaves none out, got the calibrated step 3 as step 0"):
        from_the_fourth_step()
    remove_foca_cache(dit)


@pytest.mark.parametrize("again", [True, False])
def test_a_full_step_that_failed_is_named(plan, dit, again):
    """Run again, the generation goes on; left out, only a new one helps, and the error says so."""
    lost = plan.plan.full_steps[2]
    armed = [True]

    def fail(*_):
        if armed and state["step"] == lost:
            armed.clear()
            raise MemoryError

    state = {"step": 0}
    handle = dit.transformer_blocks[1].attn1.to_q.register_forward_pre_hook(fail)
    apply_foca_cache(dit, FoCaCacheConfig(plan=plan))
    x = noise(1)

    @torch.no_grad()
    def call(step):
        state["step"] = step
        timestep = torch.tensor([plan.origin.timesteps[step]] * 2)
        return dit(x, timestep=timestep, class_labels=torch.arange(2)).sample

    def generation():
        for step in range(STEPS):
            try:
                call(step)
            except MemoryError:
                if again:
                    call(step)

    if again:
        generation()
    else:
        with pytest.raises(ValueError, match=f"full step {lost} was not completed.*new generation"):
            generation()
    generation()  # a new one
    remove_foca_cache(dit)
    handle.remove()


def test_a_plan_refuses_another_model(plan, dit):
    from models import tiny_dit, tiny_dit_pipeline, tiny_flux

    config = FoCaCacheConfig(plan=plan)
    with pytest.raises(ValueError, match="for the class DiTTransformer2DModel, got Flux"):
        apply_foca_cache(tiny_flux(), config)
    with pytest.raises(ValueError, match="configuration has the fingerprint"):
        apply_foca_cache(tiny_dit(size=16), config)
    with pytest.raises(ValueError, match="with other weights"):
        apply_foca_cache(tiny_dit(seed=1), config)
    pipeline = tiny_dit_pipeline()
    pipeline.transformer = dit
    with pytest.raises(ValueError, match="sampler FlowMatchEulerDiscreteScheduler, got DDIM"):
        apply_foca_cache(pipeline, config)
    same = tiny_dit().to(torch.bfloat16)  # only stored otherwise
    apply_foca_cache(same, config)
    remove_foca_cache(same)


def test_timesteps_may_have_gone_through_half_precision(plan):
    for step, timestep in enumerate(plan.origin.timesteps):
        rounded = float(torch.tensor(timestep, dtype=torch.bfloat16))
        assert plan.origin.step(timestep) == plan.origin.step(rounded) == step
    with pytest.raises(ValueError, match="got timestep"):
        plan.origin.step(plan.origin.timesteps[3] * 1.0007)


@pytest.mark.parametrize(
    "other",
    [{"cache_interval": 3}, {"scheme": "reuse"}, {"time": "sigma"}, {"granularity": "module"}],
)
def test_beside_a_plan_nothing_else_is_chosen(plan, other):
    with pytest.raises(ValueError, match=f"'{next(iter(other))}': expected None beside a plan"):
        FoCaCacheConfig(plan=plan, **other)
    FoCaCacheConfig(plan=plan, granularity="stack", history_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("tuned_for"), "only a plan written by foca-dit tune"),
        (lambda d: d["tuned_for"].pop("probe"), "only a plan written by foca-dit tune"),
        (lambda d: d["tuned_for"]["timesteps"].pop(), "expected 12 timesteps"),
        (lambda d: d["tuned_for"].update(timesteps="x"), "'timesteps': expected a list"),
        (lambda d: d["tuned_for"].update(model=3), "'model': expected a string, got 3"),
        (lambda d: d.update(tau=[2 * t for t in d["tau"]]), "expected the step index"),
        (lambda d: d["steps"].pop(), "tables"),
        (lambda d: d.update(version=9), "version"),
    ],
)
def test_bad_plan_files(plan, tmp_path, change, message):
    file = tmp_path / "plan.json"
    plan.save(file)
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        FoCaCacheConfig(plan=file)


def test_missing_plan_file():
    with pytest.raises(FileNotFoundError):
        FoCaCacheConfig(plan="/nowhere/plan.json")


def test_seeds_do_not_overlap():
    with pytest.raises(ValueError, match="three sets of seeds"):
        Seeds([1], [2], [1])


def test_a_target_without_a_probe_cannot_tell_weights_apart(plan, dit):
    blank = replace(plan.origin, probe=())
    blank.check(dit, "stack")
    with pytest.raises(ValueError, match="for the granularity stack, got output"):
        blank.check(dit, "output")


def test_plans_of_every_budget_are_consistent(dit):
    draw = drawing(dit)
    gram = record_grams(dit, "stack", [lambda: draw(1)]).total()
    for budget in (1, 2, STEPS):
        full = tuple(range(budget))
        assert build_plan(gram, np.ones(STEPS), full).full_steps == full
