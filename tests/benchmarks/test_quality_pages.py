"""The quality page's pictures, and what the controller's distances and weights are chosen by."""

import json
import math

import _quality
import _quality_plots
import numpy as np
import pytest
from _measure import RESULTS
from influence import fall, measured
from pace import speeds
from PIL import Image
from quality import finite

from foca_dit.evaluation.trained import SETTINGS, load_trained


def test_every_picture_is_drawn_from_the_measured_rows(tmp_path):
    _quality_plots.write_plots(tmp_path)
    names = {path.stem for path in tmp_path.glob("*.png")}
    assert names == {*_quality_plots.SHEETS, _quality_plots.FID_SHEET}
    for name in names:
        path = tmp_path / f"{name}.png"
        assert path.stat().st_size < 80_000
        colours = {colour for _, colour in Image.open(path).convert("RGB").getcolors()}
        assert len(colours) >= len(_quality_plots.LINES)


def test_a_line_holds_the_rows_of_its_scheme():
    common = {"file": _quality_plots.FLOW, "shift": 1.0, "steps": 50, "images": 8}
    adaptive = {**common, "schedule": "budget", "time": "log_snr", "full_steps": 9}
    rows = [
        {**adaptive, "granularity": "stack", "psnr": 30.0},
        {**adaptive, "granularity": "stack", "psnr": 3.0, "time": "step"},
        {**adaptive, "granularity": "output", "psnr": 1.0},
        {**common, "scheme": "fewer steps", "full_steps": 9, "psnr": 20.0},
        {**common, "scheme": "fewer steps", "full_steps": 5, "psnr": 10.0},  # out of range
        {**common, "scheme": "fewer steps", "full_steps": 9, "psnr": 2.0, "images": 4},
    ]
    lines = _quality_plots.chart(rows, _quality_plots.FLOW, 1.0, 50).lines
    assert lines["adaptive"] == [(9.0, 30.0)]
    assert lines["fewer steps"] == [(9.0, 20.0)]
    assert lines["TaylorSeer-1"] == []


def test_speed_of_a_curve_with_a_known_one():
    tau = np.linspace(0, 3, 50) ** 2
    features = np.outer(tau, [3.0, 4.0])  # a straight line: 5 units of distance per unit of tau
    np.testing.assert_allclose(speeds(features @ features.T, tau), 5.0, rtol=1e-6)
    np.testing.assert_allclose(speeds(features @ features.T, 2 * tau), 2.5, rtol=1e-6)


def test_the_last_steps_error_enters_the_sample_with_the_samplers_coefficient():
    setting = load_trained(_quality.PAGE.parents[1] / SETTINGS["flow"].folder).setting(
        1.0, steps=6, images=2, seed=3
    )
    scheduler = setting.sampler()
    scheduler.set_timesteps(6)
    assert measured(setting, 6, [5]) == pytest.approx([float(scheduler.sigmas[5])], rel=1e-4)


def test_a_fall_compares_the_first_third_with_the_last():
    assert fall([8.0, 2.0, 5.0, 5.0, 1.0, 1.0]) == pytest.approx(4.0)


def test_images_equal_to_the_full_runs_are_exact_and_no_infinity_is_written():
    assert finite(math.inf) is None
    assert finite(41.5) == 41.5
    row = {"file": "quality-adaptive-video.json", "shift": 3.0, "steps": 4, "time": "log_snr"}
    row |= {"schedule": "tol", "tol": 0.01, "full_steps": 4, "psnr": None}
    assert "| 4: exact |" in _quality.by_tolerance([row])


@pytest.mark.parametrize("file", _quality.FILES)
def test_results_are_json_as_others_read_it(file):
    def refuse(constant):
        raise ValueError(constant)

    assert json.loads((RESULTS / file).read_text(), parse_constant=refuse)
