"""Hand-worked numbers, exactness, order of convergence, bounds: what docs/method.md claims."""

import dataclasses
import math

import numpy as np
import pytest
import scheme_oracles as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from foca_dit import schemes, times
from foca_dit.schedules import FullSteps, Interval

SEEDS = st.integers(0, 2**32 - 1)
UNIFORM = [float(i) for i in range(60)]

EVERY_SCHEME = [
    *(schemes.get(name) for name in schemes.names()),
    schemes.FoCa(feedback=0.0),
    schemes.FoCa(feedback=1.0, max_carry=math.inf),
    schemes.FoCa("anchored"),
    schemes.BDF2("frozen"),
    *(schemes.TaylorSeer(order) for order in (2, 3)),
    *(schemes.TaylorSeer(order, official=True) for order in (1, 2, 3)),
    *(schemes.Newton(order) for order in (1, 3, 4)),
    *(schemes.AdamsBashforth(order) for order in (1, 3, 4)),
    schemes.HiCache(order=3, scale=0.7),
    schemes.TwoParameter(0.5, 0.3),
    schemes.DampedTrend(1.0),
    schemes.GOC(0.8, {4, 5, 6}),
]


# --- hand-worked numbers ------------------------------------------------------------------------


def test_foca_by_hand():
    # Anchors 0, 1, 4 of the values 0, 1, 7, uniform steps, c = 1. Slope at 1: D = 1, e = 0, so
    # steps 2 and 3 use 2 and 3. At 4: D = (7 - 1)/3 = 2, e = (7 - 3) - 2 = 2, hence
    # F(4 + j) = 7 + 2 j + (1 - 2^-j) 2 = 10, 12.5, 14.75.
    features = np.array([[0.0], [1], [9], [9], [7], [9], [9], [9]])
    scheme = schemes.FoCa(feedback=1.0)
    used = oracle.step_tables(scheme, features, [0, 1, 4], UNIFORM[:8])
    assert used.ravel().tolist() == [0, 1, 2, 3, 7, 10, 12.5, 14.75]
    assert scheme.weights(UNIFORM, [0, 1, 4], 6).tolist() == [1, 2, 0.75]
    assert scheme.transition(UNIFORM, [0, 1, 4]).tolist() == pytest.approx(
        np.array([[0, 0, 0, 1], [-1 / 3, 0, 0, 1 / 3], [-2 / 3, -2, -0.75, 2 / 3]])
    )


def test_a_first_slope_is_followed_in_part_by_hand():
    # The anchors and values of the test above, but a quarter of the first slope is followed: step 3
    # used 1 + 2/4 = 1.5, so e = (7 - 1.5) - 2 = 3.5 at 4, where the slope of 2 counts in full.
    scheme = schemes.FoCa(feedback=1.0, first_slope=0.25)
    assert scheme.weights(UNIFORM, [0, 1], 3).tolist() == [1.0, 0.5, 0.75]
    history = scheme.transition(UNIFORM, [0, 1, 4]) @ [1.0, 1.0, 0.0, 7.0]
    assert history.tolist() == pytest.approx([7.0, 2.0, 3.5])
    assert scheme.weights(UNIFORM, [0, 1, 4], 6).tolist() == [1.0, 2.0, 0.75]


def test_foca_anchored_by_hand():
    # Anchors 0, 1, 3 of y = x^2: D = (9 - 1)/2 = 4, f2 = 1, so F(3 + j) = 9 + 4 j + j.
    features = np.array(UNIFORM[:6])[:, None] ** 2
    used = oracle.step_tables(schemes.FoCa("anchored"), features, [0, 1, 3], UNIFORM[:6])
    assert used.ravel().tolist() == [0, 1, 2, 9, 14, 19]


def test_weights_by_hand():
    anchors = [0, 2, 5]
    assert schemes.Reuse().weights(UNIFORM, anchors, 7).tolist() == [1]
    assert schemes.TaylorSeer(2).weights(UNIFORM, anchors, 8).tolist() == [1, 3, 4.5]
    assert schemes.HiCache(2, warmup=1).weights(UNIFORM, anchors, 8).tolist() == [1, 1.5, 7 / 8]
    assert schemes.Newton(1).weights(UNIFORM, anchors, 8).tolist() == [2, -1]
    assert schemes.Newton(2).weights([0, 1, 2, 3], [0, 1, 2], 3).tolist() == [3, -3, 1]
    assert schemes.BDF2("rolling").weights(UNIFORM, anchors, 8).tolist() == [1, 3, 3]
    frozen = schemes.BDF2("frozen").weights(UNIFORM, anchors, 8)
    assert frozen.tolist() == pytest.approx([1, 3, (1 - 3**-3) / 2])
    assert schemes.DampedTrend(0.5).weights(UNIFORM, anchors, 8).tolist() == [1, 0.875]
    assert schemes.GOC(2.0, {6, 7, 9}).weights(UNIFORM, anchors, 9).tolist() == [1, 6]


def test_taylor_transitions_by_hand():
    # Gaps 2 and 3: ours divides the second difference by their mean, the published code by 3.
    ours = schemes.TaylorSeer(2).transition(UNIFORM, [1, 3, 6])
    assert ours[2].tolist() == pytest.approx([-1 / 7.5, -1 / 2.5, 0, 1 / 7.5])
    official = schemes.TaylorSeer(2, official=True).transition(UNIFORM, [1, 3, 6])
    assert official[2].tolist() == pytest.approx([-1 / 9, -1 / 3, 0, 1 / 9])


@pytest.mark.parametrize("gap", [1, 2, 3, 5, 8])
def test_uniform_slope_recursions_have_the_documented_commit(gap):
    carries = {
        schemes.FoCa(feedback=1.0): 1 - 2.0 ** -(gap - 1),
        schemes.FoCa(feedback=0.5): (1 - 2.0 ** -(gap - 1)) / 2,
        schemes.BDF2("rolling"): gap - 1,
        schemes.BDF2("frozen"): (1 - 3.0 ** -(gap - 1)) / 2,
    }
    for scheme, b in carries.items():
        table = scheme.transition(UNIFORM, [0, 5, 5 + gap])
        expected = [
            [0, 0, 0, 1],
            [-1 / gap, 0, 0, 1 / gap],
            [-1 + 1 / gap, -(gap - 1), -b, 1 - 1 / gap],
        ]
        np.testing.assert_allclose(table, expected, atol=1e-15)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.3, 0.6), (0.2, 1.0), (1.0, 0.0)])
def test_two_parameter_family_has_the_documented_closed_form(alpha, beta):
    for j in range(1, 9):
        b = float(j) if beta == 1 else beta * (1 - beta**j) / (1 - beta)
        a = alpha * j * (j + 1) / 2 if beta == 1 else alpha * (j - b) / (1 - beta)
        got = schemes.TwoParameter(alpha, beta).weights(UNIFORM, [0, 4, 9], 9 + j)
        # F + A D + B s_0 with s_0 = D + e
        np.testing.assert_allclose(got, [1, a + b, b], rtol=1e-13)


# --- exactness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=repr)
@given(seed=SEEDS)
@settings(max_examples=20)
def test_exact_on_polynomials_up_to_the_stated_degree(scheme, seed):
    rng = np.random.default_rng(seed)
    tau = oracle.irregular_times(rng, 16, descending=bool(seed % 2))
    needed = scheme.exact_degree + 1 + isinstance(scheme, schemes.HiCache)
    # Irregular from the first gap on; the official code takes no difference in its warm-up.
    official = getattr(scheme, "official", False)
    start = [0, 1, 2] if official else np.cumsum([0, *rng.integers(1, 3, needed - 1)]).tolist()
    rest = np.cumsum(rng.integers(1, 4, 4)) + start[-1]
    full = [int(s) for s in [*start, *rest] if s < 16]
    x = (tau - tau[0]) / 16
    coefficients = rng.normal(size=(scheme.exact_degree + 1, 3))
    features = np.polynomial.polynomial.polyval(x, coefficients).T
    used = oracle.step_tables(scheme, features, full, tau)[start[-1] :]
    # Rounding grows in unstable schemes (BDF2 rolling, Adams-Bashforth), hence not to an ulp.
    np.testing.assert_allclose(used, features[start[-1] :], rtol=0, atol=1e-7)


@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=repr)
def test_not_exact_one_degree_higher(scheme):
    tau = np.cumsum([0, 1, 1.5, 0.7, 1.2, 2, 1, 1.3, 0.6, 1.7])
    features = ((tau / 10) ** (scheme.exact_degree + 1))[:, None]
    used = oracle.step_tables(scheme, features, [0, 1, 2, 3, 4, 6], tau)
    assert np.abs(used - features).max() > 1e-4


def test_second_order_taylor_is_not_exact_on_quadratics_and_newton_is():
    features = (np.array(UNIFORM[:10]) ** 2)[:, None]
    errors = {}
    for scheme in (schemes.TaylorSeer(2), schemes.Newton(2)):
        used = oracle.step_tables(scheme, features, [0, 1, 2, 6], UNIFORM[:10])
        errors[scheme.name] = np.abs(used - features).max()
    assert errors["newton"] < 1e-12
    # At j = 3 after gap 4: the slope is g f2 short, so the error is j g f2 = 12.
    assert errors["taylorseer"] == pytest.approx(12)


def test_hicache_is_not_exact_on_lines():
    features = np.array(UNIFORM[:8])[:, None]
    used = oracle.step_tables(schemes.HiCache(), features, [0, 1, 2, 5], UNIFORM[:8])
    assert used[7, 0] == pytest.approx(5 + 2 / 2)  # half the slope at s = 1/2


def test_the_slope_is_divided_by_the_gap():
    # A forecaster that is not forecasts 10 and 20 here.
    features = np.array(UNIFORM[:9])[:, None]
    for scheme in (schemes.FoCa(), schemes.TaylorSeer(), schemes.BDF2()):
        used = oracle.step_tables(scheme, features, [0, 5], UNIFORM[:9])
        np.testing.assert_allclose(used[6:].ravel(), [6, 7, 8], rtol=1e-14)


# --- order of convergence -----------------------------------------------------------------------


def solution(t):
    """y' = [[-1/2, -3], [3, -1/2]] y, a damped rotation."""
    return np.stack([np.exp(-t / 2) * np.cos(3 * t), np.exp(-t / 2) * np.sin(3 * t)], axis=-1)


def graded_times(length, steps):
    """A smooth map of a uniform grid: steps vary by a factor of three along the way."""
    u = np.linspace(0, 1, steps)
    return length * (u + 0.5 * u * u) / 1.5


@pytest.mark.parametrize(
    "scheme", [s for s in EVERY_SCHEME if not isinstance(s, schemes.GOC)], ids=repr
)
def test_local_order(scheme):
    """A fixed pattern of full and skipped steps on a shrinking grid."""
    full = [0, 1, 2, 3, 4, 7, 9, 12]
    errors = []
    for length in (0.4, 0.2, 0.1, 0.05):
        tau = graded_times(length, 15)
        features = solution(1.0 + tau)
        # Hermite polynomials have a unit of their own: HiCache converges in the step index only.
        time = UNIFORM[:15] if isinstance(scheme, schemes.HiCache) else tau
        used = oracle.step_tables(scheme, features, full, time)
        errors.append(np.abs(used - features).max())
    measured = math.log2(errors[-2] / errors[-1])
    assert measured == pytest.approx(scheme.exact_degree + 1, abs=0.35)


@pytest.mark.parametrize(
    "scheme",
    [
        schemes.Reuse(),
        schemes.TaylorSeer(1),
        schemes.TaylorSeer(2),
        schemes.Newton(2),
        schemes.Newton(3),
        schemes.FoCa(feedback=0.5),
        schemes.FoCa(feedback=1.0),
        schemes.FoCa("anchored"),
        schemes.BDF2("frozen"),
        schemes.FrozenSlopeHeun(),
    ],
    ids=repr,
)
def test_global_order_over_a_fixed_time(scheme):
    """Ever more intervals of N = 5 over one stretch of time: the carried part stays bounded."""
    errors = []
    for steps in (160, 320, 640):
        tau = graded_times(3.0, steps)
        features = solution(tau)
        used = oracle.step_tables(scheme, features, Interval(5).full_steps(steps), tau)
        errors.append(np.abs(used - features)[12:].max())  # after the start-up at lower order
    measured = math.log2(errors[-2] / errors[-1])
    assert measured == pytest.approx(scheme.exact_degree + 1, abs=0.35)


# --- stability ----------------------------------------------------------------------------------


def effective_weights(scheme, tau, anchors, step):
    """Weights on (F_a, F_a', P): the slope and the innovation written out."""
    a, before = anchors[-1], anchors[-2]
    gap, h = tau[a] - tau[before], tau[a] - tau[a - 1]
    _, slope, innovation = scheme.weights(tau, anchors, step)
    trend = (slope - innovation) / gap
    return np.array([1 + trend + innovation / h, -trend, -innovation / h])


@pytest.mark.parametrize("feedback", [0.0, 0.5, 1.0])
def test_sum_of_absolute_weights(feedback):
    scheme = schemes.FoCa(feedback=feedback)
    for gap in range(1, 9):
        for j in range(1, gap + 2):
            total = np.abs(effective_weights(scheme, UNIFORM, [0, 2, 2 + gap], 2 + gap + j)).sum()
            b = feedback * (1 - 2.0**-j)
            assert total == pytest.approx(1 + 2 * (j - b) / gap + 2 * b)
            assert total <= 5
    # The first N = 5 interval after consecutive warm-up steps.
    assert np.abs(effective_weights(scheme, UNIFORM, [0, 1, 2], 6)).sum() == pytest.approx(9)


def innovation_growth(scheme, interval, intervals=12):
    """By how much an innovation grows over `intervals` intervals when nothing new comes in."""
    tau = [float(i) for i in range(3 + interval * intervals)]
    anchors, factor = [0, 1, 2], 1.0
    for _ in range(intervals + 1):
        factor *= abs(scheme.transition(tau, anchors)[2, 2]) if len(anchors) > 3 else 1.0
        anchors = [*anchors, anchors[-1] + interval]
    return factor


@pytest.mark.parametrize("feedback", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("interval", [2, 3, 5, 8])
def test_steady_state_on_a_quadratic(interval, feedback):
    """Innovation and error per unit of f2, as docs/method.md derives them."""
    n, anchors = interval, [0, interval, 2 * interval, 3 * interval]
    scheme = schemes.FoCa(feedback=feedback)
    b = feedback * (1 - 2.0 ** -(n - 1))
    innovation = 2 * n * (n - 1) / (1 + b)
    at = float(2 * n)  # the anchor before; y = x^2 has f2 = 1 and slope (at^2 - (at - n)^2) / n
    history = [at**2, (at**2 - (at - n) ** 2) / n, innovation]
    feature = (at + n) ** 2
    history = scheme.transition(UNIFORM, anchors) @ [*history, feature]
    assert history[2] == pytest.approx(innovation)
    for j in range(1, n):
        error = (at + n + j) ** 2 - scheme.weights(UNIFORM, anchors, 3 * n + j) @ history
        assert error == pytest.approx(j * (j + n) - feedback * (1 - 2.0**-j) * innovation)
        anchored = schemes.FoCa("anchored").weights(UNIFORM, anchors, 3 * n + j)
        error = (at + n + j) ** 2 - anchored @ [feature, history[1], 1.0]
        assert error == pytest.approx(j * (j + n / 2))


def test_bdf2_alone_diverges_from_intervals_of_three_and_foca_does_not():
    assert innovation_growth(schemes.BDF2("rolling"), 2) == pytest.approx(1)
    assert innovation_growth(schemes.BDF2("rolling"), 3) == pytest.approx(2.0**12)
    for interval in range(2, 9):
        assert innovation_growth(schemes.BDF2("frozen"), interval) < 1
        assert innovation_growth(schemes.FoCa(feedback=1.0), interval) < 1


def test_max_carry_never_acts_on_uniform_steps():
    for interval in range(1, 12):
        for feedback in (0.5, 1.0):
            bound = schemes.FoCa(feedback=feedback)
            free = dataclasses.replace(bound, max_carry=math.inf)
            anchors = [0, 1, 2, 2 + interval]
            np.testing.assert_array_equal(
                bound.transition(UNIFORM, anchors), free.transition(UNIFORM, anchors)
            )


def test_max_carry_bounds_the_growth_on_a_log_snr_grid():
    sigma = 3 * np.linspace(1, 0.02, 50) / (1 + 2 * np.linspace(1, 0.02, 50))
    tau = times.get("log_snr").flow(np.arange(50), sigma)
    free = schemes.FoCa(feedback=1.0, max_carry=math.inf)
    carries = [-free.transition(tau, [0, 1, 1 + gap])[2, 2] for gap in range(2, 20)]
    assert max(carries) > 1
    bound = [
        -schemes.FoCa(feedback=1.0).transition(tau, [0, 1, 1 + gap])[2, 2] for gap in range(2, 20)
    ]
    assert max(bound) == 1


# --- start-up and structure ---------------------------------------------------------------------


@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=repr)
def test_start_up(scheme):
    """One anchor is reused; history never read before it is set (the oracle starts with NaN)."""
    k = scheme.history_size
    first = scheme.transition(UNIFORM, [4])
    assert first.shape == (k, k + 1)
    assert np.count_nonzero(first) == 1
    assert first[0, k] == 1
    assert scheme.weights(UNIFORM, [4], 9).tolist() == [1] + [0] * (k - 1)
    features = np.random.default_rng(0).normal(size=(30, 2))
    used = oracle.step_tables(scheme, features, [0, 4, 7, 8, 12, 20], UNIFORM[:30])
    assert np.isfinite(used).all()
    assert (used[1:4] == features[0]).all()


@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=repr)
@given(seed=SEEDS)
@settings(max_examples=10)
def test_slot_zero_is_the_feature_and_dtype_is_float64(scheme, seed):
    rng = np.random.default_rng(seed)
    tau = oracle.irregular_times(rng, 20)
    anchors = sorted(rng.choice(15, size=rng.integers(1, 8), replace=False).tolist())
    table = scheme.transition(tau, anchors)
    weights = scheme.weights(tau, anchors, 17)
    assert table.dtype == weights.dtype == np.float64
    assert weights[0] == 1 or isinstance(scheme, schemes.Newton)
    assert table[0].tolist() == [0.0] * scheme.history_size + [1.0]


@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=repr)
def test_times_after_the_step_are_not_read(scheme):
    tau = [*UNIFORM[:9], math.nan, -3.0]
    anchors = [0, 1, 2, 5]
    assert np.isfinite(scheme.weights(tau, anchors, 8)).all()
    known = scheme.weights(UNIFORM[:9], anchors, 8)
    assert scheme.weights(tau, anchors, 8).tolist() == known.tolist()


def test_lower_orders_serve_until_the_history_is_full():
    features = np.array(UNIFORM[:12])[:, None]
    line = features.ravel()
    for scheme in (schemes.TaylorSeer(3), schemes.Newton(3), schemes.AdamsBashforth(4)):
        used = oracle.step_tables(scheme, features, [0, 4, 9], UNIFORM[:12]).ravel()
        np.testing.assert_allclose(used[4:], line[4:], rtol=1e-12)
        assert (used[:4] == 0).all()


def test_the_second_anchor_has_no_innovation():
    # Anchors 0 and 5 of a line: the reused value at step 4 must not count as a jump.
    features = np.array(UNIFORM[:12])[:, None]
    for scheme in (
        schemes.FoCa(),
        schemes.BDF2(),
        schemes.TwoParameter(),
        schemes.FoCa("anchored"),
    ):
        used = oracle.step_tables(scheme, features, [0, 5], UNIFORM[:12]).ravel()
        np.testing.assert_allclose(used[5:], features[5:].ravel(), rtol=1e-14)


@pytest.mark.parametrize("scheme", EVERY_SCHEME, ids=repr)
def test_schemes_are_data(scheme):
    assert scheme.citation
    assert scheme.order >= 0
    assert 1 <= scheme.history_size <= 8  # the kernels' limit
    assert hash(scheme) == hash(dataclasses.replace(scheme))
    assert schemes.build(schemes.describe(scheme)) == scheme
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheme.feedback = 2.0


def test_full_steps_anywhere_are_a_schedule_too():
    assert FullSteps([0, 3, 4]).full_steps(10) == (0, 3, 4)
