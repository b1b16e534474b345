"""The analysis on paths whose answers are known."""

import math

import numpy as np
import pytest
import torch

from foca_dit import schemes
from foca_dit.analysis import claims, dynamics


def gram_of(path: np.ndarray) -> np.ndarray:
    x = path.reshape(len(path), -1)
    return x @ x.T


def test_local_truncation_error_of_a_parabola():
    """First-order Taylor from the last two of t^2 misses by 2 h^2 / 2 twice: t^2 - (2a - b)."""
    t = np.arange(1.0, 21.0)
    gram = gram_of((t**2)[:, None])
    errors = dynamics.local_truncation_errors(gram, schemes.TaylorSeer(1), range(20))
    # (k+1)^2 - (2 k^2 - (k-1)^2) = 2 at every step from the third on.
    np.testing.assert_allclose(errors[2:], 2 / t[2:] ** 2, rtol=1e-6)
    assert math.isnan(errors[0])
    newton = dynamics.local_truncation_errors(gram, schemes.Newton(2), range(20))
    assert np.abs(newton[3:]).max() < 1e-5


@pytest.mark.parametrize(
    ("scheme", "order"),
    [(schemes.Reuse(), 1), (schemes.TaylorSeer(1), 2), (schemes.Newton(2), 3)],
)
def test_local_truncation_error_falls_with_the_order_on_an_ode(scheme, order):
    """y' = -y: halving the step divides the local error by 2^order."""
    late = []
    for steps in (21, 41):
        tau = np.linspace(0, 1, steps)
        gram = gram_of(np.exp(-tau)[:, None])
        late.append(dynamics.local_truncation_errors(gram, scheme, tau)[-1])
    assert math.log2(late[0] / late[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("rate", [0.5, 3.0])
def test_lipschitz_estimate_of_a_linear_ode_is_its_rate(rate):
    """y' = -rate y has L = rate; the estimate is of differences, so up to O(h)."""
    tau = np.linspace(0, 1, 200)
    path = np.exp(-rate * tau)[:, None] * np.array([[1.0, -2.0, 0.5]])
    lipschitz, index = dynamics.stiffness(gram_of(path), tau)
    np.testing.assert_allclose(lipschitz[:-2], rate, rtol=0.02)
    np.testing.assert_allclose(index[:-2], rate / 199, rtol=0.02)
    assert np.isnan(lipschitz[-2:]).all()


def test_lipschitz_estimate_on_graded_times():
    """Of a parabola in tau, whose forward differences are sums of two times."""
    tau = np.array([0.0, 0.1, 0.4, 1.0, 3.0])
    lipschitz, index = dynamics.stiffness(gram_of(tau[:, None] ** 2), tau)
    slopes, moves = tau[1:] + tau[:-1], np.diff(tau**2)
    expected = np.abs(np.diff(slopes)) / np.abs(moves[:-1])
    np.testing.assert_allclose(lipschitz[:-2], expected)
    np.testing.assert_allclose(index[:-2], expected * np.diff(tau)[:-1])
    assert np.isnan(lipschitz[-2:]).all()


def test_stiffness_does_not_depend_on_the_unit_of_time():
    rng = np.random.default_rng(0)
    gram = gram_of(rng.normal(size=(10, 30)).cumsum(0))
    tau = np.arange(10.0)
    np.testing.assert_allclose(
        dynamics.stiffness(gram, tau)[1][:-2], dynamics.stiffness(gram, -3 * tau)[1][:-2]
    )


def test_relative_errors_are_those_of_the_features():
    torch.manual_seed(0)
    x = torch.randn(12, 7, dtype=torch.float64).cumsum(0)
    full = (0, 1, 2, 6, 10)
    scheme = schemes.FoCa(feedback=0.5)
    direct = schemes.run_reference(scheme, x, full)
    expected = (direct - x).norm(dim=1) / x.norm(dim=1)
    used = dynamics.used_values(scheme, full, range(12))
    errors = dynamics.relative_errors(gram_of(x.numpy()), used)
    np.testing.assert_allclose(errors, expected.numpy(), atol=1e-9)
    assert errors[list(full)].max() == 0


def test_horizon_errors_and_their_growth():
    """Reuse of a straight path: the error is the distance, so it grows with power 1."""
    path = np.stack([np.full(30, 100.0), np.arange(30.0)], axis=1)
    errors = dynamics.horizon_errors(gram_of(path), schemes.Reuse(), range(30), 10, 8)
    norms = np.linalg.norm(path[11:19], axis=1)
    np.testing.assert_allclose(errors * norms, np.arange(1, 9), rtol=1e-6)
    assert dynamics.growth_exponent(np.arange(1, 9.0)) == pytest.approx(1)
    assert dynamics.growth_exponent(np.arange(1, 9.0) ** 2) == pytest.approx(2)
    assert dynamics.growth_exponent([3.0] * 5) == pytest.approx(0)
    assert math.isnan(dynamics.growth_exponent([1.0]))
    exact = dynamics.horizon_errors(gram_of(path), schemes.TaylorSeer(1), range(30), 10, 8)
    assert exact.max() < 1e-6
    assert len(dynamics.horizon_errors(gram_of(path), schemes.Reuse(), range(30), 25, 8)) == 4


def test_foca_after_computing_every_step_is_first_order_taylor():
    """The innovation after consecutive full steps is zero: figure 8b compares orders."""
    rng = np.random.default_rng(1)
    gram = gram_of(rng.normal(size=(30, 40)).cumsum(0))
    foca = dynamics.horizon_errors(gram, schemes.FoCa(feedback=1.0), range(30), 15, 10)
    taylor = dynamics.horizon_errors(gram, schemes.TaylorSeer(1), range(30), 15, 10)
    np.testing.assert_allclose(foca, taylor, rtol=1e-6)
    spread = dynamics.horizon_errors(gram, schemes.FoCa(feedback=1.0), range(30), 15, 10, 4)
    assert not np.allclose(spread, taylor, rtol=0.1)


def test_principal_plane_of_an_ellipse_is_the_ellipse():
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(25, 2)))[0]
    path = 5 + (np.stack([3 * np.cos(angle), np.sin(angle)], 1) @ basis.T)
    coordinates, shares = dynamics.principal_plane(gram_of(path), [np.eye(40)])
    np.testing.assert_allclose(shares, [0.9, 0.1], atol=1e-6)
    np.testing.assert_allclose(np.abs(coordinates[0][:, 0]), 3 * np.abs(np.cos(angle)), atol=1e-5)
    np.testing.assert_allclose(np.abs(coordinates[0][:, 1]), np.abs(np.sin(angle)), atol=1e-5)


def test_channel_index_of_channels_with_known_rates():
    """Channels decay with rates 1 to 10: the index is near their ratio at the quantiles."""
    tau = np.linspace(0, 0.01, 5)
    rates = np.linspace(1, 10, 101)
    features = torch.from_numpy(np.exp(-tau[:, None, None] * rates) * np.ones((5, 4, 101)))
    index = dynamics.channel_index(features, tau)
    low, high = np.quantile(rates, [0.05, 0.95])
    assert index[0] == pytest.approx(high / low, rel=0.02)
    assert np.isnan(index[-2:]).all()


def test_claims_follow_the_numbers():
    def judge(foca, taylor, late):
        series = {claims.PAPER: foca, "TaylorSeer-1": taylor}
        ablation = {claims.PAPER: {2: 40.0}, "BDF2 alone": {2: 40.0 - late}}
        return [
            c.agrees
            for c in claims.judge(
                series,
                {claims.PAPER: [1.0] * 8 + [late] * 2},
                [late] * 10,
                {8: series},
                {claims.PAPER: 0.1 * late},
                ablation,
                5,
            )
        ]

    #      1b     7     LTE    h L    8b    Prop. 1
    assert judge([1.0], [2.0], 3.0) == [True, True, True, False, True, False]
    assert judge([2.0], [1.0], 1.0) == [False, True, False, False, False, True]
    assert claims.late_rise([1.0] * 8 + [4.0] * 2) == pytest.approx(4)
