"""The CPU's own scripts at small sizes: what they measure, not how fast it was."""

import copy
import json
import math
import os
import sys

import _calibrators
import ops
import pytest
import skip
import torch
from _measure import Results

from foca_dit.evaluation.trained import load

CASES = list(_calibrators.cases(1 << 12, torch.bfloat16))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_comparison_with_calibrators_runs(case):
    for provider in case.providers.values():
        provider(case.inputs())()


def test_a_skipped_step_of_modules_counts_its_tensors_once_per_forecast():
    case = _calibrators.modules_case("FoCa", 1 << 12, torch.float32, 5)
    inputs = case.inputs()
    history, gates = (sum(t.nbytes for t in inputs[name]) for name in ("history", "gates"))
    assert len(inputs["history"]) == 3 * _calibrators.FEATURES
    assert case.nbytes(inputs) == 4 * (history + gates + 2 * inputs["x"].nbytes)


def test_a_skipped_step_of_modules_is_the_forecasts_gated_and_added():
    case = _calibrators.modules_case("FoCa", 1 << 12, torch.float32, 2)
    inputs = case.inputs()
    (weights,) = _calibrators.weights_of("FoCa", 2)
    wanted = inputs["x"].double()
    for index, gate in enumerate(inputs["gates"]):
        slots = inputs["history"][3 * index : 3 * index + 3]
        wanted += gate.double() * sum(w * t.double() for w, t in zip(weights, slots, strict=True))
    case.providers["cpu-cpp"](inputs)()
    torch.testing.assert_close(inputs["x"].double(), wanted, rtol=1e-5, atol=1e-5)


def test_cases_are_measured_in_processes_of_their_own(tmp_path):
    def run(own):
        own.left_out("b", "no time")
        own.add(case="a", ms=1.0, process=os.getpid())

    results = Results(tmp_path / "rows.json", "cpu")
    (row,) = ops.apart(results, run)
    assert row["case"] == "a"
    assert row["process"] != os.getpid()
    assert [row["case"] for row in json.loads(results.path.read_text())] == ["b", "a"]
    with pytest.raises(EOFError):
        ops.apart(results, lambda own: os._exit(1))


def test_skip_measures_every_way_and_the_model_without_blocks(tmp_path, monkeypatch):
    out = tmp_path / "skip.json"
    options = ["--batch", "2", "--steps", "9", "--interval", "3", "--rounds", "2", "--out", out]
    monkeypatch.setattr(sys, "argv", ["skip.py", *map(str, options)])
    skip.main()
    rows = json.loads(out.read_text())
    steps = {row["cached"]: row for row in rows if row["case"] == "skipped step"}
    runs = {row["cached"]: row for row in rows if row["case"] == "generation"}
    assert list(runs) == list(skip.WAYS)
    assert list(steps) == [skip.NO_BLOCKS, *skip.WAYS]
    assert steps["module"]["cache_mb"] == steps["module, float32 history"]["cache_mb"] / 2
    assert all(math.isfinite(row["psnr"]) and row["full_steps"] == 5 for row in runs.values())
    assert steps["stack"]["skipped_ms"] > 0


def test_without_blocks_is_embedding_and_head():
    """As if every gate were zero."""
    model, _ = load(skip.WEIGHTS)
    x, labels = torch.randn(2, 1, 28, 28), torch.tensor([1, 2])
    alone = skip.without_blocks(copy.deepcopy(model))
    for block in model.transformer_blocks:
        block.norm1.linear.weight.zero_()
        block.norm1.linear.bias.zero_()
    wanted, got = (
        m(x, timestep=torch.full((2,), 500.0), class_labels=labels).sample for m in (model, alone)
    )
    assert torch.equal(got, wanted)
