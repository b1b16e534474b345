"""`foca-dit tune` as a user runs it, on the shipped weights; and the chart it draws."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from foca_dit import (
    FoCaCacheConfig,
    apply_foca_cache,
    foca_cache_stats,
    remove_foca_cache,
    schemes,
)
from foca_dit.analysis.metrics import psnr
from foca_dit.cli.chart import Chart, log_ticks, stack, ticks
from foca_dit.cli.main import main
from foca_dit.cli.tradeoff import has_cache_dit, measure_rivals
from foca_dit.cli.tune import table
from foca_dit.evaluation.trained import drawing, load
from foca_dit.origin import Origin
from foca_dit.plan import Plan
from foca_dit.schedules import FullSteps
from foca_dit.tuned import TunedPlan

WEIGHTS = Path(__file__).parents[2] / "examples/fashion_dit/weights"
QUICK = ["--quick", "--samples", "2", "--steps", "20"]


def test_a_tuned_plan_beats_the_uniform_interval_on_new_seeds(tmp_path, capsys):
    file = tmp_path / "plan.json"
    arguments = ["tune", str(WEIGHTS), "--budget", "6", *QUICK, "--out", str(file)]
    assert main(arguments) == 0
    assert "written" in capsys.readouterr().out
    assert {f.name for f in tmp_path.iterdir()} == {"plan.json", "plan.recording.json"}
    report = json.loads(file.read_text())["report"]
    assert set(report["placements"]) >= {"dynamic programming", "even"}
    model, scheduler = load(WEIGHTS)
    draw = drawing(model, scheduler, samples=4, steps=20, guidance_scale=1.0)
    full = draw(model, 5)
    decibels = {}
    for name, config in {
        "tuned": FoCaCacheConfig(plan=file),
        "uniform": FoCaCacheConfig(cache_interval=5, granularity="module", time="step"),
    }.items():
        apply_foca_cache(model, config)
        decibels[name] = psnr(draw(model, 5), full)
        stats = foca_cache_stats(model)
        remove_foca_cache(model)
        assert stats["full_steps"] == 6
        assert stats["granularity"] == "module"
        assert stats["collapsed_skips"] == 14
    assert decibels["tuned"] > decibels["uniform"] + 2


def test_an_interrupted_run_goes_on(tmp_path, capsys, monkeypatch):
    """While it records it leaves nothing; afterwards it does not record again."""
    import foca_dit.calibration.tune as tuning

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    short = ["--quick", "--samples", "1", "--steps", "6", "--budget", "3"]
    argv = ["tune", str(WEIGHTS), *short, "--out", str(tmp_path / "plan.json")]
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "model_influence", interrupted)
        assert main(argv) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "candidates", interrupted)
        assert main(argv) == 130
    assert "the same command goes on after the recording" in capsys.readouterr().out
    assert [f.name for f in tmp_path.iterdir()] == ["plan.recording.json"]
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "model_influence", interrupted)  # would be called to record
        assert main(argv) == 0
        resumed = json.loads((tmp_path / "plan.json").read_text())
        assert main([*argv, "--seed", "7"]) == 130  # another recording is needed
    capsys.readouterr()
    assert main([*argv, "--fresh"]) == 0
    assert json.loads((tmp_path / "plan.json").read_text()) == resumed
    (tmp_path / "plan.recording.json").write_text("{}")
    assert main(argv) == 2
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "expected a folder with transformer/ and scheduler/"),
        ([str(WEIGHTS), "--samples", "0"], "--samples: expected at least 1, got 0"),
        ([str(WEIGHTS), "--steps", "2"], "--steps: expected at least 3, got 2"),
        ([str(WEIGHTS), "--budget", "1"], "--budget: expected at least 2, got 1"),
        ([str(WEIGHTS), "--budget", "60"], "--budget: expected fewer than --steps 50, got 60"),
        ([str(WEIGHTS), "--budget", "9", "50"], "--budget: expected fewer than --steps 50, got 50"),
        ([str(WEIGHTS), "--out", "."], "--out: expected the name of a file, got the folder ."),
        ([str(WEIGHTS), "--out", str(WEIGHTS)], "--out: expected the name of a file, got the"),
        ([str(WEIGHTS), "--draw", "/nowhere/a.png"], "--draw: expected a folder that exists"),
        ([str(WEIGHTS), "--draw", "a.svg"], "--draw: expected a picture's name to end in .png"),
        ([str(WEIGHTS), "--out", "/nowhere/p.json"], "--out: expected a folder that exists"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, capsys):
    assert main(["tune", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_plans_are_refused_where_one_of_several_cannot_be_written(tmp_path, capsys):
    (tmp_path / "p-4.json").mkdir()
    out = ["--budget", "3", "4", "--out", str(tmp_path / "p.json")]
    assert main(["tune", str(WEIGHTS), *QUICK, *out]) == 2
    assert "p-4.json" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["p-4.json"]


def test_another_model_is_told_how_to_go_on(tmp_path, capsys):
    argv = ["tune", "--quick", "--samples", "1", "--steps", "4", "--budget", "3"]
    argv += ["--out", str(tmp_path / "plan.json")]
    assert main([*argv, str(WEIGHTS)]) == 0
    file = tmp_path / "plan.recording.json"
    data = json.loads(file.read_text())
    data["measured_on"]["probe"] = [2 * x for x in data["measured_on"]["probe"]]
    file.write_text(json.dumps(data))
    capsys.readouterr()
    assert main([*argv, str(WEIGHTS)]) == 2
    error = capsys.readouterr().err
    assert "plan.recording.json: expected a recording of this model" in error
    assert "--fresh" in error
    assert "another --out" in error
    assert "other weights" in error


def test_equal_images_have_no_decibels_in_the_table():
    tables = Plan.build(schemes.Reuse(), FullSteps([0, 1]), [0.0, 1.0, 2.0])
    origin = Origin("x", "stack", "", (3.0, 2.0, 1.0), "", ())
    report = {"budget": 2, "check_psnr": None, "chosen": "even"}
    shown = table([TunedPlan(tables, origin, report)]).splitlines()[-1].split()
    assert shown == ["2", "-", "even", "0,", "1"]


def test_rivals_are_measured_at_their_full_steps():
    model, scheduler = load(WEIGHTS)
    draw = drawing(model, scheduler, samples=1, steps=12, guidance_scale=1.0)
    pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
    lines = measure_rivals(pipeline, draw, [3], "stack", 12)
    assert [x for x, _ in lines["FoCa, uniform"]] == [6, 5, 4, 4, 4]
    assert lines["FoCa, uniform"][0][1] > lines["reuse, uniform"][0][1]
    if has_cache_dit():
        # One of seven blocks is computed at each of the six skipped steps.
        assert lines["cache-dit, TaylorSeer-1"][0][0] == pytest.approx(6 + 6 / 7)
        assert 10 < lines["cache-dit, TaylorSeer-1"][0][1] < 80
    assert torch.equal(draw(model, 3), draw(model, 3))


def test_ticks_are_round_and_inside():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.013, 0.048) == [0.02, 0.03, 0.04]
    assert ticks(3, 3) == [3]
    assert log_ticks(0, 1) == pytest.approx([0, 0.30103, 0.69897, 1], abs=1e-4)
    assert log_ticks(-6, 0) == [-6, -5, -4, -3, -2, -1, 0]


@pytest.mark.parametrize("log_y", [False, True])
def test_chart_draws_its_lines_where_they_belong(log_y):
    points = [(x, 1.0 + 99 * (x == 9)) for x in range(10)]
    chart = Chart("title", "x", "y", {"red": points, "none": [(0, float("nan"))]}, log_y)
    image = chart.draw(400, 300)
    red = [
        (x, y)
        for x in range(400)
        for y in range(300)
        if (p := image.getpixel((x, y)))[0] > p[1] + 60 and x < 345
    ]
    lowest = [x for x, y in red if y > 200]
    highest = [x for x, y in red if y < 120]
    assert max(lowest) - min(lowest) > 150  # flat at the bottom ..
    assert min(highest) > max(lowest) - 40  # .. and up at its end
    assert Chart("t", "x", "y", {}).draw(400, 300).size == (400, 300)
    assert stack([image] * 3).size == (800, 600)
    assert isinstance(stack([image]), Image.Image)
