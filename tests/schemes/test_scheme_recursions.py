"""The tables give what the source formulas give, stepped literally on the values used."""

import math

import numpy as np
import pytest
import scheme_oracles as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from foca_dit import schemes

SEEDS = st.integers(0, 2**32 - 1)


def problem(seed: int, consecutive: int = 1, steps: int = 22):
    """Random features, irregular times in either direction, random full steps."""
    rng = np.random.default_rng(seed)
    tau = oracle.irregular_times(rng, steps, descending=bool(seed % 2))
    full = set(range(consecutive)) | {0} | set(np.flatnonzero(rng.random(steps) < 0.35).tolist())
    return rng.normal(size=(steps, 3)), sorted(full), tau.tolist()


def assert_same(scheme, expected, features, full, tau, rtol=1e-9):
    got = oracle.step_tables(scheme, features, full, tau)
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@given(SEEDS)
@settings(max_examples=60)
def test_bdf2_derivative_at_the_predicted_point_is_the_slope_it_was_given(seed):
    rng = np.random.default_rng(seed)
    f_k, f_km1, slope = rng.normal(size=(3, 4))
    h, h_prev = rng.uniform(0.2, 3.0, 2) * rng.choice([-1.0, 1.0])
    predicted = oracle.bdf2_predictor(f_k, f_km1, slope, h, h_prev)
    derivative = oracle.bdf2_derivative(predicted, f_k, f_km1, h, h_prev)
    np.testing.assert_allclose(derivative, slope, rtol=1e-10, atol=1e-10)


def test_variable_step_formulas_are_the_papers_on_uniform_steps():
    f_k, f_km1, slope, h = np.array([2.0]), np.array([5.0]), np.array([0.7]), 0.3
    predicted = 4 / 3 * f_k - 1 / 3 * f_km1 + 2 * h / 3 * slope
    np.testing.assert_allclose(oracle.bdf2_predictor(f_k, f_km1, slope, h, h), predicted)
    derivative = (3 * predicted - 4 * f_k + f_km1) / (2 * h)
    np.testing.assert_allclose(oracle.bdf2_derivative(predicted, f_k, f_km1, h, h), derivative)


@given(SEEDS)
@settings(max_examples=60)
def test_a_step_of_the_paper_is_the_kernels_forecast_calibrate(seed):
    rng = np.random.default_rng(seed)
    f_k, f_km1, slope = rng.normal(size=(3, 4))
    h, h_prev = rng.uniform(0.2, 3.0, 2)
    np.testing.assert_allclose(
        oracle.foca_step(f_k, f_km1, slope, h, h_prev),
        oracle.forecast_calibrate(f_k, f_km1, slope, h, h_prev),
        rtol=1e-10,
        atol=1e-10,
    )


ROLLING = [
    (schemes.FoCa(feedback=1.0, max_carry=math.inf), oracle.foca_step),
    (schemes.FoCa(feedback=1.0, max_carry=math.inf), oracle.forecast_calibrate),
    (schemes.TwoParameter(0.5, 0.5), oracle.foca_step),
    (schemes.BDF2("rolling"), oracle.bdf2_rolling_step),
    (schemes.BDF2("frozen"), oracle.bdf2_frozen_step),
    (schemes.FrozenSlopeHeun(), oracle.frozen_slope_heun_step),
    (schemes.TwoParameter(0.3, 0.7), oracle.two_parameter_step(0.3, 0.7)),
    (schemes.TwoParameter(0.9, 0.4), oracle.two_parameter_step(0.9, 0.4)),
]


@pytest.mark.parametrize(("scheme", "one_step"), ROLLING, ids=lambda p: getattr(p, "__name__", p))
@given(seed=SEEDS)
@settings(max_examples=40)
def test_slope_recursions(scheme, one_step, seed):
    features, full, tau = problem(seed)
    assert_same(scheme, oracle.step_recursion(one_step, features, full, tau), features, full, tau)


@pytest.mark.parametrize("feedback", [0.0, 0.5, 0.75, 1.0])
@given(seed=SEEDS)
@settings(max_examples=25)
def test_foca_feedback(feedback, seed):
    features, full, tau = problem(seed)
    expected = oracle.step_recursion(oracle.foca_step, features, full, tau, feedback)
    assert_same(schemes.FoCa(feedback=feedback, max_carry=math.inf), expected, features, full, tau)


@given(SEEDS)
@settings(max_examples=40)
def test_foca_anchored(seed):
    features, full, tau = problem(seed)
    expected = oracle.anchored_foca(features, full, tau)
    assert_same(schemes.FoCa("anchored"), expected, features, full, tau)


@given(SEEDS)
@settings(max_examples=40)
def test_foca_without_feedback_is_first_order_taylor(seed):
    features, full, tau = problem(seed)
    expected = oracle.taylor(1, features, full, tau)
    assert_same(schemes.FoCa(feedback=0.0), expected, features, full, tau)
    assert_same(schemes.TwoParameter(1.0, 0.0), expected, features, full, tau)
    assert_same(schemes.DampedTrend(1.0), expected, features, full, tau)


@pytest.mark.parametrize("order", [1, 2, 3])
@given(seed=SEEDS)
@settings(max_examples=25)
def test_taylor(order, seed):
    features, full, tau = problem(seed)
    assert_same(
        schemes.TaylorSeer(order), oracle.taylor(order, features, full, tau), features, full, tau
    )


@pytest.mark.parametrize("warmup", [1, 2, 3])
@pytest.mark.parametrize("order", [1, 2, 3])
@given(seed=SEEDS)
@settings(max_examples=15)
def test_official_taylor_and_hermite(order, warmup, seed):
    features, full, tau = problem(seed, consecutive=warmup)

    def taylor(anchors, k):
        j = tau[k] - tau[anchors[-1]]
        factors = oracle.official_differences(order, warmup, features, anchors, tau)
        return sum(f * j**i / math.factorial(i) for i, f in enumerate(factors))

    def hermite(anchors, k):
        j = tau[k] - tau[anchors[-1]]
        factors = oracle.official_differences(order, warmup, features, anchors, tau)
        polynomials = [
            np.polynomial.hermite.hermval(0.5 * j, np.eye(order + 1)[i]) for i in range(order + 1)
        ]
        return sum(f * 0.5**i * polynomials[i] / math.factorial(i) for i, f in enumerate(factors))

    expected = oracle.from_anchors(taylor, features, full)
    official = schemes.TaylorSeer(order, official=True, warmup=warmup)
    assert_same(official, expected, features, full, tau)
    expected = oracle.from_anchors(hermite, features, full)
    assert_same(schemes.HiCache(order, warmup=warmup), expected, features, full, tau)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@given(seed=SEEDS)
@settings(max_examples=25)
def test_newton(order, seed):
    features, full, tau = problem(seed)
    assert_same(
        schemes.Newton(order), oracle.newton(order, features, full, tau), features, full, tau
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@given(seed=SEEDS)
@settings(max_examples=25)
def test_adams_bashforth(order, seed):
    features, full, tau = problem(seed, consecutive=order, steps=14)
    expected = oracle.adams_bashforth(order, features, full, tau)
    assert_same(schemes.AdamsBashforth(order), expected, features, full, tau, rtol=1e-6)


@given(SEEDS)
@settings(max_examples=25)
def test_second_order_adams_bashforth_is_bdf2_rolling(seed):
    features, full, tau = problem(seed)
    expected = oracle.step_tables(schemes.BDF2("rolling"), features, full, tau)
    assert_same(schemes.AdamsBashforth(2), expected, features, full, tau)


@pytest.mark.parametrize("inflection", [None, set(), set(range(3, 9)) | {14, 15}])
@given(seed=SEEDS)
@settings(max_examples=20)
def test_goc(inflection, seed):
    features, full, tau = problem(seed)
    expected = oracle.goc(0.8, inflection, features, full, tau)
    assert_same(schemes.GOC(0.8, inflection), expected, features, full, tau)


@given(SEEDS)
@settings(max_examples=25)
def test_damped_trend(seed):
    features, full, tau = problem(seed)
    expected = oracle.damped_trend(0.7, features, full, tau)
    assert_same(schemes.DampedTrend(0.7), expected, features, full, tau)


def test_run_reference_is_the_same_in_torch():
    torch = pytest.importorskip("torch")
    features, full, tau = problem(3)
    for name in schemes.names():
        scheme = schemes.get(name)
        got = schemes.run_reference(scheme, torch.from_numpy(features), full, tau)
        assert got.dtype == torch.float64
        expected = oracle.step_tables(scheme, features, full, tau)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_run_reference_takes_the_step_index_for_time_and_any_float_dtype():
    torch = pytest.importorskip("torch")
    features = torch.arange(8.0, dtype=torch.bfloat16).reshape(8, 1, 1)
    got = schemes.run_reference(schemes.FoCa(), features, [0, 1, 5])
    assert got.dtype == torch.float64
    assert torch.equal(got, features.double())


@pytest.mark.parametrize("reading", ["rolling", "anchored"])
def test_stepping_the_op_gives_the_closed_form(reading):
    torch = pytest.importorskip("torch")
    kernels = pytest.importorskip("foca_kernels.reference")
    features, full, tau = problem(11, consecutive=2)
    values = torch.from_numpy(features)

    def one_step(f_k, f_km1, d_anchor, h, h_prev):
        previous = torch.from_numpy(f_km1.copy())
        kernels.forecast_calibrate(
            torch.from_numpy(f_k.copy()), previous, torch.from_numpy(d_anchor.copy()), h, h_prev
        )
        return previous.numpy()

    if reading == "rolling":
        scheme = schemes.FoCa(feedback=1.0, max_carry=math.inf)
        stepped = oracle.step_recursion(one_step, features, full, tau)
    else:
        scheme = schemes.FoCa("anchored")

        def forecast(anchors, k):
            a, b = anchors[-1], anchors[-2]
            gap = tau[a] - tau[b]
            slope = (features[a] - features[b]) / gap
            if len(anchors) > 2:
                nodes = anchors[-3:]
                slope = slope + gap * oracle.divided_difference(
                    [features[n] for n in nodes], [tau[n] for n in nodes]
                )
            return one_step(features[a], features[b], slope, tau[k] - tau[a], gap)

        stepped = oracle.from_anchors(forecast, features, full)
    closed = schemes.run_reference(scheme, values, full, tau)
    np.testing.assert_allclose(stepped, closed.numpy(), rtol=1e-9, atol=1e-9)
