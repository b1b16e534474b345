"""The oracle against numbers worked out by hand."""

import oracle
import pytest
import torch


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_calibrate_by_hand():
    # Equal steps h = 1: slope 3 - 1 = 2, predicted 4/3 3 - 1/3 1 + 2/3 2 = 5, its BDF2 slope
    # 3/2 5 - 2 3 + 1/2 1 = 2, corrected 3 + 1/2 (6 + 2) = 7.
    assert oracle.calibrate(tensor(3), tensor(1), tensor(6), 1.0, 1.0).value.item() == 7
    # h = 2 after h_prev = 4, so w = 1/2: slope 1/2, corrected 3 + 1 (6 + 1/2) = 9.5.
    result = oracle.calibrate(tensor(3), tensor(1), tensor(6), 2.0, 4.0)
    assert result.value.item() == pytest.approx(9.5, rel=1e-15)
    assert result.magnitude.item() == 3 + 1 * (6 + (3 + 1) / 4)


@pytest.mark.parametrize("h", [0.1, 1.0, 7.0, -0.3])
@pytest.mark.parametrize("h_prev", [0.2, 1.0, 5.0, -0.7])
def test_calibrate_is_exact_on_straight_lines(h, h_prev):
    if h * h_prev < 0:
        h_prev = -h_prev
    value, slope, t = 2.0, -3.0, 1.5
    line = [value + slope * at for at in (t, t - h_prev, t + h)]
    result = oracle.calibrate(tensor(line[0]), tensor(line[1]), tensor(slope), h, h_prev)
    assert result.value.item() == pytest.approx(line[2], rel=1e-13)


def test_weighted_sum_by_hand():
    result = oracle.weighted_sum([tensor(1, 2), tensor(10, -20)], [3.0, 0.5])
    assert result.value.tolist() == [8, -4]
    assert result.magnitude.tolist() == [8, 16]
    unset = tensor(float("nan"), float("nan"))
    assert oracle.weighted_sum([tensor(1, 2), unset], [2.0, 0.0]).value.tolist() == [2, 4]


def test_residual_by_hand():
    x = tensor(1, 1)
    history = [tensor(1, 2), tensor(3, 4), tensor(5, 6), tensor(7, 8)]
    weights = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    gates = [tensor(1, 10), tensor(2, 100)]
    # Features (4, 6) and (-2, -2): 1 + 1*4 - 2*2 = 1, 1 + 10*6 - 100*2 = -139.
    assert oracle.residual(x, history, weights, gates).value.tolist() == [1, -139]
    assert oracle.residual(x, history, weights, []).value.tolist() == [3, 5]
    assert oracle.residual(x, history, weights[0], []).value.tolist() == [1 + 4 + 12, 1 + 6 + 14]


def test_commit_by_hand():
    # FoCa's commit at gap 1: F_new, F_new - F_old; the reduced row is the second difference.
    transition = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [-1.0, -1.0, 1.0]])
    rows = oracle.commit(tensor(5, 9), [tensor(3, 4), tensor(1, 1)], transition)
    assert [row.value.tolist() for row in rows] == [[5, 9], [2, 5], [1, 4]]
    assert oracle.sum_of_squares(rows[2]).value.item() == 17


def test_ulp():
    assert oracle.ulp(tensor(1.0), torch.bfloat16).item() == 2**-7
    assert oracle.ulp(tensor(-3.9), torch.float16).item() == 2**-9
    assert oracle.ulp(tensor(0.0), torch.float16).item() == 2**-24


def test_tolerance_accepts_rounding_and_refuses_truncation():
    value = torch.linspace(1, 2, 1000, dtype=torch.float64)
    expected = oracle.Expected(value, value)
    oracle.assert_close(value.bfloat16(), expected)
    truncated = (value.float().view(torch.int32) & -65536).view(torch.float32).bfloat16()
    with pytest.raises(AssertionError):
        oracle.assert_close(truncated, expected)


def test_tolerance_wants_infinities_and_nans_in_place():
    value = tensor(float("inf"), float("nan"), 1)
    expected = oracle.Expected(value, value.abs())
    oracle.assert_close(value, expected)
    for wrong in (tensor(float("-inf"), float("nan"), 1), tensor(float("inf"), 0, 1)):
        with pytest.raises(AssertionError):
            oracle.assert_close(wrong, expected)
