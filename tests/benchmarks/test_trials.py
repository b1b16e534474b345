"""benchmarks/trials.py: one thing changed at a time, on the same images."""

import json

import pytest
import trials
from _trial_tables import trials as table

import foca_dit.schedules.sampler as sampler
from foca_dit import schemes
from foca_dit.config import MEASURED_FOCA


@pytest.mark.parametrize(("anchors", "feedback"), [([0, 1, 4], 1.0), ([0, 1, 5], 0.5)])
def test_feedback_by_gap(anchors, feedback):
    scheme = trials.FeedbackByGap(feedback=0.5, first_slope=0.25, short=3)
    tau = [float(step) for step in range(9)]
    expected = schemes.FoCa(feedback=feedback)._weights(tau, anchors, 7)
    assert scheme._weights(tau, anchors, 7).tolist() == expected.tolist()


@pytest.mark.parametrize(("anchors", "feedback"), [([0, 1, 3], 1.0), ([0, 1, 4], 2 / 3)])
def test_half_of_an_innovation_returns(anchors, feedback):
    scheme, tau = trials.HalfReturns(), [float(step) for step in range(12)]
    expected = schemes.FoCa(feedback=feedback)
    assert scheme._weights(tau, anchors, 7).tolist() == expected._weights(tau, anchors, 7).tolist()
    # The old innovation's part in the new one, after the gap whose forecasts had that feedback.
    (carried,) = -scheme._rows(tau, [*anchors, 2 * anchors[-1] - anchors[-2]])[1:2, 2]
    assert carried == pytest.approx(0.5)


def test_every_variant_changes_one_thing():
    for name, variant in trials.VARIANTS.items():
        changed = [variant.scheme != MEASURED_FOCA, bool(variant.schedule), bool(variant.constants)]
        assert sum(changed) == (name != "default"), name
        assert all(hasattr(sampler, constant) for constant in variant.constants), name


def test_variants_draw_beside_the_default_and_go_on(tmp_path, monkeypatch):
    chosen = ("default", "c = 1", "data std 3 (flow)", "data std 3 (noise)")
    monkeypatch.setattr(trials, "VARIANTS", {name: trials.VARIANTS[name] for name in chosen})
    monkeypatch.setattr(trials, "CELLS", {"flow": ((1.0, 9, (5,)),)})
    constant = sampler.LARGE_STD
    out = tmp_path / "trials.json"
    monkeypatch.setattr("sys.argv", ["trials.py", "--images", "2", "--out", str(out)])
    trials.main()
    assert constant == sampler.LARGE_STD
    rows = json.loads(out.read_text())
    by_variant = {row["variant"]: row for row in rows if row["variant"] != "uniform"}
    assert set(by_variant) == set(chosen[:3])  # the last is for another model
    assert len(rows) == 3 + len(trials.UNIFORM)
    assert {row["full_steps"] for row in by_variant.values()} == {5}
    assert by_variant["c = 1"]["psnr"] != by_variant["default"]["psnr"]
    assert all(row["psnr_each"] >= row["psnr"] - 1e-6 for row in rows)  # Jensen's inequality
    trials.main()
    assert json.loads(out.read_text()) == rows
    lines = table(tmp_path).splitlines()
    gain = by_variant["c = 1"]["psnr_each"] - by_variant["default"]["psnr_each"]
    assert any(line.startswith("| c = 1 ") and f"{gain:+.2f}" in line for line in lines)
