"""The benchmarks count the right bytes, and their correctness check can fail."""

import json

import pytest
import torch

from foca_kernels import bytes_moved, reference
from foca_kernels.registry import FUNCTIONS

BF16 = torch.bfloat16


def test_bytes_by_hand():
    x, wide = torch.ones(2, 3, 4, dtype=BF16), torch.ones(4)  # 48 and 16 bytes
    assert bytes_moved.forecast_calibrate(x) == 4 * 48
    assert bytes_moved.forecast_calibrate(x, rotate=True) == 5 * 48
    # One weight of three is zero: two reads, one write.
    assert bytes_moved.forecast([x] * 3, torch.tensor([1.0, 0.0, 2.0])) == 3 * 48
    # Five slots, x read and written, two gates.
    weights = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    assert bytes_moved.forecast_residual_(x, [x] * 6, weights, [wide] * 2) == 7 * 48 + 32
    packed = torch.ones(2, 3, 2, 3, 4, dtype=BF16)
    gates = torch.ones(2, 1, 4)
    assert bytes_moved.forecast_residual_packed_(x, packed, weights, gates) == 7 * 48 + 32
    assert bytes_moved.forecast_residual_packed_(x, packed, weights[0], gates[:0]) == 8 * 48
    # An unused feature takes its gate along.
    weights[1] = 0
    assert bytes_moved.forecast_residual_(x, [x] * 6, weights, [wide] * 2) == 5 * 48 + 16
    # The last column of history is not read: reads 2, writes 2.
    transition = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])
    assert bytes_moved.commit_(x, [x, x], transition) == 4 * 48


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_correctness_check_accepts_the_reference(function):
    from _correct import check

    for dtype in (torch.float32, BF16):
        errors = dict(check(function, getattr(reference, function), dtype, "cpu"))
        assert set(errors) == {"eager", "second thread"}
        assert max(errors.values()) <= 1.0, errors


@pytest.mark.slow
def test_correctness_check_compiles_operators():
    from _correct import check

    errors = dict(check("commit_", torch.ops.foca.commit_, BF16, "cpu", compiled=True))
    assert errors["compiled"] <= 1.0


def test_scalars_of_the_first_call_are_found_in_the_second():
    """A compiled function that keeps the weights of its first call is wrong in mode `compiled`."""
    from _correct import check

    def ignores(history, weights):
        return torch.ops.foca.forecast(history, torch.ones_like(weights))

    errors = dict(check("forecast", ignores, BF16, "cpu", compiled=True))
    assert errors["compiled"] > 1


def test_correctness_check_refuses_wrong_kernels():
    from _correct import check

    def ignores_the_weights(history, weights):
        return history[0].clone()

    def forgets_to_write(x, history, weights, gates):
        pass

    assert dict(check("forecast", ignores_the_weights, BF16, "cpu"))["eager"] > 1
    assert dict(check("forecast_residual_", forgets_to_write, BF16, "cpu"))["eager"] > 1


def test_a_case_writes_its_rows(tmp_path):
    from _cases import forecast_case
    from _measure import Results, table
    from _run import run_case

    path = tmp_path / "rows.json"
    case = forecast_case((1, 8, 16), "cpu")
    del case.providers["compile"]
    rows = run_case(case, "cpu", Results(path, "cpu"), rounds=1, cold=False)
    stored = json.loads(path.read_text())
    assert len(stored) == len(rows) >= 4
    wanted = {"case", "provider", "dtype", "shape", "ms", "gbs", "copy_gbs"}
    assert all(set(row) >= wanted | {"device", "torch", "commit", "date"} for row in stored)
    assert "copy" in table(rows)
    assert rows[0]["bytes"] == 4 * 8 * 16 * 2


def test_a_failing_provider_is_left_out(capsys):
    from _cases import forecast_case
    from _measure import Results
    from _run import run_case

    def broken(inputs):
        def call():
            raise ValueError("not today")

        return call

    case = forecast_case((1, 8, 16), "cpu")
    case.providers = {"broken": broken}
    rows = run_case(case, "cpu", Results(None, "cpu"), rounds=1, cold=False)
    assert [row["provider"] for row in rows] == ["copy"]
    assert "not today" in capsys.readouterr().out
