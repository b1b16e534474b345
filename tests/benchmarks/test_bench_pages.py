"""The page and pictures made of the JSON files: complete, up to date, and honest where empty."""

import json
from importlib.util import find_spec
from unittest.mock import patch

import _bars
import _evaluation
import _performance
import _quality
import _tune_tables
import plots
import pytest
from _measure import Budget, Results
from _pages import MARKERS
from recorded import recorded
from suite.run import Run

from foca_dit import capture

# `make bench` installs cache-dit, `make test` does not.
PEERS = 2 if find_spec("cache_dit") else 0


@pytest.mark.parametrize(
    "page", [_performance, _tune_tables, _quality, _evaluation], ids=lambda page: page.__name__
)
def test_a_page_is_the_measured_one(page):
    text = page.PAGE.read_text()
    named = [match[2] for match in MARKERS.finditer(text)]
    assert sorted(named) == sorted(page.SECTIONS)
    assert page.updated(text) == text, "run python benchmarks/report.py"


def test_what_was_not_measured_is_called_so_with_its_command(tmp_path):
    rows = list(_bars.table_rows(lambda part: []))
    assert len(rows) == 8
    assert all(measured == "not measured" for _, _, measured, _ in rows)
    assert {command for *_, command in rows} == {
        f"`make bench-gpu PARTS={part}`" for part in ("ops", "skip", "commit", "e2e-flux")
    }
    for section in ("steps", "loops", "skips", "ratios", "calibrators", "features"):
        assert "Not measured: `make bench" in _performance.SECTIONS[section](tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of a tiny run of three parts, kept as a GPU's would be."""
    import torch
    from suite import endtoend, skipped

    folder = tmp_path_factory.mktemp("results")

    def run(part):
        results = Results(folder / f"gpu-tiny-{part}.json", "cpu")
        return Run("cpu", results, Budget(600), tiny=True, rounds=1)

    with torch.inference_mode(), patch.dict(capture.CAPTURES, cpu=recorded):
        skipped.whole_steps(steps := run("skip"), "flux.1-dev")
        skipped.whole_steps(steps, "dit-xl/2-256")
        skipped.collapsed(steps, "flux.1-dev")
        endtoend.end_to_end(run("e2e-flux"), "flux")
    return folder


@pytest.fixture
def rows_of(folder, monkeypatch):
    """The rows of a part, with CPU columns as a GPU would have filled them."""
    monkeypatch.setattr(_bars, "KERNEL", "cpu-cpp")

    def rows(part):
        path = folder / f"gpu-tiny-{part}.json"
        found = json.loads(path.read_text()) if path.exists() else []
        for row in found:
            if "peak_gb" in row:
                row["peak_gb"] = 1.5
            if row.get("provider") == "eager again":
                row["provider"] = "compile"
        return found

    return rows


def test_bars_read_what_the_suite_writes(rows_of):
    measured = {what: text for what, _, text, _ in _bars.table_rows(rows_of)}
    assert "eager" in measured["collapsed skip, FLUX shape"]
    whole = measured["whole skipped step, FLUX, module / stack"]
    assert whole.count("%") == 4
    assert "module, one graph" in whole
    loops = measured["end to end over steps / full steps, FLUX, N = 5, 7, 8"]
    assert loops.count("of its bytes") == 1
    assert "stack, N=5: " in loops
    peak = measured["peak memory beside diffusers' TaylorSeer and cache-dit"]
    assert peak.count("1.5 GB") == 5 + PEERS
    launches = measured["launches in a skipped step"]
    assert "collapsed part: 1" in launches
    assert "as a graph: " in launches
    assert measured["DiT-XL/2, batch 1 (two guidance branches)"].count("%") == 4
    assert measured["commit with statistics"] == "not measured"


def test_bars_over_operators_by_hand():
    def row(case, provider="cuda-cpp", ms=1.0, gbs=90.0, **more):
        more = {"elements": 1 << 25, "dtype": "bfloat16", "model": "flux.1-dev"} | more
        return {"case": case, "provider": provider, "ms": ms, "gbs": gbs, "copy_gbs": 100.0} | more

    ops = [row("a", gbs=95.0), row("b"), row("c", gbs=1.0, elements=1 << 12), row("d", "eager")]
    assert _bars._every_op(ops).startswith("90% at the least (b, bfloat16, 33554432 elements); 2 ")
    commits = [row("commit_ K=3 R=2", ms=2.1), row("commit_ K=3 R=0", ms=2.0)]
    assert _bars._statistics(commits) == "1.05x"


def test_tables_and_pictures_of_a_device(folder, tmp_path):
    assert _performance.devices(folder) == ["tiny"]
    loops, steps = _performance.loops(folder), _performance.steps(folder)
    assert loops.count("flux.1-dev, batch 1") == 6 + PEERS
    assert steps.count("one graph") == 4
    names = {path.name for path in plots.draw_all(folder, tmp_path)}
    assert names == {
        "roofline-cpu.png", "features.png", "skipped.png", "speedup.png", "timeline-tiny.png",
    }  # fmt: skip
    assert all(path.stat().st_size < 80_000 for path in tmp_path.iterdir())


def test_published_points_are_the_papers():
    lines = plots.published()
    assert all(name.startswith("published: ") for name in lines)
    # N = 8 on FLUX: 6.24 times fewer FLOPs, 25.82 s to 5.88 s.
    assert lines["published: FoCa, FLUX"][-1] == (6.24, pytest.approx(4.39, abs=0.01))
    assert [x for x, _ in lines["published: FoCa, DiT-XL/2"]] == [1.92, 2.77, 4.53]


def test_pictures_in_the_repository_are_small():
    pictures = list(plots.FIGURES.glob("*.png"))
    assert {p.stem for p in pictures} >= {"roofline-cpu", "features", "skipped", "speedup"}
    assert all(p.stat().st_size < 80_000 for p in pictures)
