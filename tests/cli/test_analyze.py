"""`foca-dit analyze` and `calibrate` as a user runs them, on the shipped weights."""

import json
from pathlib import Path

import pytest
from PIL import Image

from foca_dit.calibration.files import load_scheme
from foca_dit.cli.main import main

WEIGHTS = str(Path(__file__).parents[2] / "examples/fashion_dit/weights")


def test_analyze_writes_figures_and_judges_claims(tmp_path, capsys):
    out = tmp_path / "analysis.json"
    arguments = ["--samples", "1", "--steps", "20", "--intervals", "3", "--out", str(out)]
    assert main(["analyze", WEIGHTS, *arguments, "--interval", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("agrees:") + printed.count("DISAGREES:") == 6
    data = json.loads(out.read_text())  # strict: no NaN
    assert [c["source"] for c in data["claims"]][-1] == "Proposition 1"
    assert len(data["timesteps"]) == len(data["stiffness"]) == 20
    assert data["full_steps"] == [0, 1, 2, 5, 8, 11, 14, 17]
    for step in data["full_steps"]:
        assert data["interval_errors"]["FoCa c=1/2"][step] < 1e-6
    assert data["stiffness"][-1] is None
    assert data["ablation"]["FoCa c=1/2"]["3"] > data["ablation"]["BDF2 alone"]["3"] + 5
    with Image.open(tmp_path / "analysis.png") as image:
        assert image.width == 1520
        assert len(image.convert("L").getcolors(256)) > 50


def test_calibrate_writes_schemes_that_load(tmp_path, capsys):
    arguments = ["--samples", "1", "--generations", "2", "--steps", "8"]
    goc, eoc = tmp_path / "goc.json", tmp_path / "eoc.json"
    assert main(["calibrate", "goc", WEIGHTS, *arguments, "--out", str(goc)]) == 0
    assert main(["calibrate", "eoc", WEIGHTS, *arguments, "--out", str(eoc)]) == 0
    assert "forecasts are corrected" in capsys.readouterr().out
    assert set(load_scheme(goc).base.inflection_steps) <= set(range(2, 8))
    scheme = load_scheme(eoc)
    # Full steps 0, 1, 2, 5: the others are corrected from the one before them.
    assert {(a, s) for _, a, s in scheme.factors} <= {(2, 3), (2, 4), (5, 6), (5, 7)}
    assert next(iter(scheme.factors.values())).shape == (1, 49, 192)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze", "/nowhere"], "expected a folder with transformer/ and scheduler/"),
        (["analyze", WEIGHTS, "--steps", "5"], "--steps: expected at least 15, got 5"),
        (["analyze", WEIGHTS, "--samples", "0"], "--samples: expected at least 1, got 0"),
        (["analyze", WEIGHTS, "--out", "x.png"], "JSON file that does not end in .png"),
        (["analyze", WEIGHTS, "--out", "folder.json"], "name of a file, got the folder folder.png"),
        (["analyze", WEIGHTS, "--interval", "1"], "--interval: expected at least 2, got 1"),
        (["calibrate", "goc", WEIGHTS, "--out", "/nowhere/x.json"], "a folder that exists"),
        (
            ["calibrate", "eoc", WEIGHTS, "--out", "x.json", "--generations", "1"],
            "--generations: expected at least 2, got 1",
        ),
    ],
)
def test_bad_input_is_one_clear_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
