"""The step size controller on curves with known solutions, and at its limits."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foca_dit import schemes
from foca_dit.schedules import NEVER, Adaptive, FullSteps, Outlook, Situation
from foca_dit.schedules.defects import defect_rows

FOCA = schemes.FoCa(feedback=0.5)
SCHEMES = [schemes.Reuse(), schemes.TaylorSeer(order=1), FOCA, schemes.Newton(order=2)]


def follow(schedule, curve, tau, scheme=FOCA):
    """Caches a curve [S, D] in float64. Returns full steps, values used, and the decisions."""
    outlook = Outlook(tuple(tau), tuple(np.abs(np.gradient(tau))))
    history = np.zeros((scheme.history_size, curve.shape[1]))
    anchors, defects, decisions, used, due = [], [], [], [], 0
    for step, value in enumerate(curve):
        if step < due:
            used.append(scheme.weights(tau, anchors, step) @ history)
            continue
        anchors.append(step)
        columns = np.vstack([history, value])
        defect, norm = np.linalg.norm(defect_rows(scheme, tau, anchors) @ columns, axis=1)
        defects.append(defect / norm if norm else 0.0)
        history = scheme.transition(tau, anchors) @ columns
        used.append(value)
        decisions.append(schedule.decide(Situation(anchors, defects, outlook, scheme.exact_degree)))
        due = decisions[-1].next_full
    return anchors, np.array(used), decisions


def interval_errors(curve, tau, anchors, used):
    """Weighted error of every interval: what the tolerance is about."""
    weighted = np.abs(np.gradient(tau)) * np.linalg.norm(used - curve, axis=1)
    return np.add.reduceat(weighted, anchors)


def circle(t):
    """The solution of y'' = -y: the same curvature everywhere."""
    return np.stack([np.cos(t), np.sin(t)], axis=1)


def test_steps_shrink_where_the_curvature_grows():
    t = np.linspace(0, 4, 400)
    chirp = circle(t**2)  # frequency 2t: y' = 2t J y
    anchors, _, _ = follow(Adaptive(tol=2e-3), chirp, t)
    gaps = np.diff(anchors)[3:]  # the error of a gap J is curvature J^3: J ~ t^(-2/3)
    assert gaps[:4].mean() > 2 * gaps[-4:].mean()
    smooth = np.convolve(gaps, np.ones(5) / 5, mode="valid")
    assert (np.diff(smooth) < 0.5).all()  # down all the way, but for rounding to whole steps


def test_steps_grow_where_the_curve_comes_to_rest():
    t = np.linspace(0, 8, 400)
    decay = np.stack([np.ones_like(t), np.exp(-t)], axis=1)  # y' = -y beside a constant
    gaps = np.diff(follow(Adaptive(tol=1e-4), decay, t)[0])
    assert gaps[-2] > 2.5 * gaps[4]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_error_is_proportional_to_the_tolerance_over_two_decades(scheme):
    t = np.linspace(0, 12, 1200)
    curve = circle(t)
    tolerances = np.geomspace(2e-4, 2e-2, 3)
    errors = []
    for tol in tolerances:
        anchors, used, _ = follow(Adaptive(tol=float(tol)), curve, t, scheme)
        errors.append(np.median(interval_errors(curve, t, anchors, used)[4:-1]))
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert 0.8 < slope < 1.2
    ratios = np.array(errors) / tolerances
    assert (ratios > 0.15).all()
    assert (ratios < 1.5).all()


def test_predicted_errors_are_near_the_true_ones():
    t = np.linspace(0, 12, 600)
    curve = circle(t)
    anchors, used, decisions = follow(Adaptive(tol=5e-3), curve, t, schemes.TaylorSeer(order=1))
    true = interval_errors(curve, t, anchors, used)[4:-1]
    predicted = np.array([d.predicted for d in decisions])[4:-1]
    np.testing.assert_allclose(predicted, true, rtol=0.2)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("budget", [4, 7, 12, 40])
def test_a_budget_is_met(scheme, budget):
    t = np.linspace(0, 3, 50)
    for curve in (circle(t), circle(t**2), circle(np.exp(t))):
        assert len(follow(Adaptive(budget=budget), curve, t, scheme)[0]) == budget


def test_a_budget_of_all_steps_and_of_more():
    t = np.linspace(0, 3, 20)
    for budget in (20, 30):
        assert follow(Adaptive(budget=budget), circle(t), t)[0] == list(range(20))


def test_the_same_curve_under_another_unit_of_time_or_size():
    t = np.linspace(0, 3, 100)
    expected = follow(Adaptive(budget=12), circle(t), t)[0]
    assert follow(Adaptive(budget=12), 1e6 * circle(t), t)[0] == expected
    assert follow(Adaptive(budget=12), circle(t), 1000 * t)[0] == expected
    assert follow(Adaptive(budget=12), circle(t), -t)[0] == expected


@pytest.mark.parametrize("limit", [{"tol": 1e-3}, {"budget": 15}])
def test_bounds_and_forced_steps(limit):
    t = np.linspace(0, 6, 60)
    rule = Adaptive(**limit, min_gap=2, max_gap=5, first=4, last=3)
    anchors = follow(rule, circle(t), t)[0]
    assert anchors[:4] == [0, 1, 2, 3]
    assert anchors[-3:] == [57, 58, 59]
    between = np.diff(anchors[3:-3])
    assert between.min() >= 2
    assert between.max() <= 5
    tail = follow(Adaptive(**limit, tail=50), circle(t), t)[0]
    assert set(range(50, 60)) <= set(tail)


@pytest.mark.parametrize(
    ("budget", "anchors", "expected"),
    [
        (26, [0, 1], 2),  # the mean of what is left is 49/25, and no more is justified
        (17, [0, 1], 4),  # 49/16
        (5, [0, 1], 5),  # the mean is 12, but a slope over one step is not followed that far
        (5, [0, 2], 9),  # over two steps: six further
        (5, [0, 1, 5], 20),  # one curvature: the mean of what is left
        (5, [0, 1, 5, 20], 47),  # two: as the curvatures say
    ],
)
def test_a_budget_is_held_back_until_two_curvatures_are_known(budget, anchors, expected):
    """All steps to come weigh nothing here but the last ones: as far as possible is best."""
    outlook = Outlook(tuple(range(50)), (0.0,) * 47 + (1.0,) * 3)
    seen = Situation(anchors, [1.0, 0.1, 0.01, 0.01][: len(anchors)], outlook)
    assert Adaptive(budget=budget).decide(seen).next_full == expected


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_features_have_no_curvature(value):
    """The curvature is then that of rounding: as far as allowed, and no division by zero."""
    t = np.linspace(0, 1, 50)
    curve = np.full((50, 2), value)
    assert follow(Adaptive(tol=1e-3), curve, t)[0] == [0, 1, 2]
    assert np.diff(follow(Adaptive(tol=1e-3, max_gap=10), curve, t)[0]).max() == 10
    assert len(follow(Adaptive(budget=6), curve, t)[0]) == 6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_falls_back_to_the_shortest_gap(bad):
    outlook = Outlook(tuple(range(50)), (1.0,) * 50)
    rule = Adaptive(tol=0.1, min_gap=2)
    decision = rule.decide(Situation([0, 1, 2], [1.0, 0.1, bad], outlook))
    assert (decision.next_full, decision.finite) == (4, False)
    # Later decisions do not remember it.
    after = rule.decide(Situation([0, 1, 2, 4], [1.0, 0.1, bad, 1e-4], outlook))
    clean = rule.decide(Situation([0, 1, 2, 4], [1.0, 0.1, math.nan, 1e-4], outlook))
    assert after == clean
    assert after.finite
    assert after.next_full > 6


@pytest.mark.parametrize("end", [{"tail": 10}, {"last": 10}])
def test_the_shortest_gap_ends_where_the_full_steps_at_the_end_begin(end):
    outlook = Outlook(tuple(range(20)), (1.0,) * 20)
    rule = Adaptive(tol=0.1, min_gap=5, **end)
    steps = [
        rule.decide(Situation([0, 1, a], [1.0, 0.1, math.nan], outlook)).next_full
        for a in (4, 8, 9, 12)
    ]
    assert steps == [9, 10, 10, 13]
    assert (
        rule.decide(Situation([0, 8], [1.0, 0.1], outlook)).next_full == 10
    )  # nothing to measure yet


def test_a_single_step_and_the_last_one():
    outlook = Outlook((0.0,), (1.0,))
    for rule in (Adaptive(tol=0.1, first=1), Adaptive(budget=1, first=1)):
        assert rule.decide(Situation([0], [1.0], outlook)).next_full >= 1
    both = Situation([0, 1], [1.0, 0.1], Outlook((0.0, 1.0), (1, 1)))
    assert Adaptive(budget=2).decide(both).next_full == NEVER
    outlook = Outlook((0.0, 1.0, 2.0, 3.0), (1.0,) * 4)
    assert (
        Adaptive(tol=9.0).decide(Situation([0, 1, 2], [1, 0.1, 0.01], outlook)).next_full == NEVER
    )


def test_without_an_outlook_nothing_is_skipped():
    assert [Adaptive(tol=1.0).next_full(a) for a in ([], [0], [0, 1, 5])] == [0, 1, 6]
    with pytest.raises(ValueError, match="adaptive"):
        Adaptive(tol=1.0).full_steps(50)


@given(
    st.lists(st.floats(0, 10) | st.just(math.nan) | st.just(math.inf), min_size=50, max_size=50),
    st.integers(0, 48),
    st.integers(1, 6),
    st.integers(0, 10),
    st.none() | st.integers(40, 60),
)
@example([0.0] * 50, 0, 1, 2, None)
@example([0.0] * 50, 1, 2, 2, 45)
def test_whatever_is_measured_a_budget_is_kept_and_steps_go_forward(
    defects, free, min_gap, last, tail
):
    tau = tuple(np.linspace(-5, 5, 50))
    outlook = Outlook(tau, tuple(np.linspace(1, 0, 50)))
    end = min(50 - last, 50 if tail is None else tail)
    budget = 2 + free + 50 - end  # at the start, wherever it is best, at the end
    rule = Adaptive(budget=budget, min_gap=min_gap, last=last, tail=tail)
    anchors = [0]
    while True:
        decision = rule.decide(Situation(anchors, defects[: len(anchors)], outlook))
        assert decision.next_full > anchors[-1]
        if decision.next_full >= 50:
            break
        anchors.append(decision.next_full)
    finite = all(map(math.isfinite, defects[: len(anchors)]))
    assert len(anchors) <= budget or not finite
    assert set(range(end, 50)) <= set(anchors)


@pytest.mark.parametrize(
    ("budget", "end", "met"),
    [(4, {"last": 2}, 4), (8, {"tail": 45}, 8), (3, {"tail": 45}, 7)],
)
def test_full_steps_at_the_end_are_of_the_budget(budget, end, met):
    """The steps that `tail` forces are made even where the budget has not as many."""
    t = np.linspace(0, 3, 50)
    for curve in (circle(t), circle(t**2), circle(np.exp(t))):
        assert len(follow(Adaptive(budget=budget, **end), curve, t)[0]) == met


BAD = {
    "neither": ({}, ValueError, "either 'tol' or 'budget'"),
    "both": ({"tol": 0.1, "budget": 9}, ValueError, "either 'tol' or 'budget'"),
    "tol 0": ({"tol": 0}, ValueError, "'tol'.*above 0"),
    "tol NaN": ({"tol": math.nan}, ValueError, "'tol'.*finite"),
    "budget": ({"budget": 3, "first": 2, "last": 2}, ValueError, "'budget'.*>= 4.*got 3"),
    "min_gap": ({"tol": 1, "min_gap": 0}, ValueError, "'min_gap'.*>= 1"),
    "max_gap": ({"tol": 1, "min_gap": 4, "max_gap": 3}, ValueError, "'max_gap'.*>= 4"),
    "first": ({"tol": 1, "first": 0}, ValueError, "'first'.*>= 1"),
    "safety": ({"tol": 1, "safety": 0}, ValueError, "'safety'.*above 0"),
    "trust": ({"tol": 1, "trust": 2}, ValueError, "'trust'.*from 0 to 1"),
    "timesteps": ({"tol": 1, "timesteps": ["a"]}, TypeError, r"timesteps\[0\]"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Adaptive(**arguments)


def test_a_list_of_full_steps_is_saved_and_loaded(tmp_path):
    file = tmp_path / "steps.json"
    FullSteps([0, 1, 2, 5]).save(file)
    assert FullSteps.load(file) == FullSteps([0, 1, 2, 5])
    file.write_text("[0, 1]")
    with pytest.raises(ValueError, match="full_steps"):
        FullSteps.load(file)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"steps\.json: expected JSON"):
        FullSteps.load(file)
