"""The tables of the C++ header are those of Python: the same operations in the same order."""

import math

import numpy as np
import pytest
import scheme_oracles as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from foca_dit import schedules, schemes

planner = pytest.importorskip("foca_kernels._planner", reason="the C++ planner is not built")

SEEDS = st.integers(0, 2**32 - 1)

FOCA = [
    {"reading": "rolling", "feedback": 0.5, "max_carry": 1.0},
    {"reading": "rolling", "feedback": 1.0, "max_carry": math.inf},
    {"reading": "rolling", "feedback": 1.0, "max_carry": 0.3},
    {"reading": "rolling", "feedback": 0.5, "first_slope": 0.25},
    {"reading": "anchored"},
    {"reading": "anchored", "first_slope": 0.0},
    {},
]
TAYLOR = [
    {"order": order, "official": official, "warmup": warmup}
    for order in (1, 2, 3)
    for official, warmup in ((False, 3), (True, 1), (True, 3))
]
PAIRS = [
    *((planner.FoCa(**p), schemes.FoCa(**p)) for p in FOCA),
    *((planner.TaylorSeer(**p), schemes.TaylorSeer(**p)) for p in TAYLOR),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: repr(pair[1]))
@given(seed=SEEDS)
@settings(max_examples=40)
def test_tables(pair, seed):
    compiled, python = pair
    rng = np.random.default_rng(seed)
    tau = oracle.irregular_times(rng, 24, descending=bool(seed % 2)).tolist()
    anchors = sorted(rng.choice(20, size=rng.integers(1, 8), replace=False).tolist())
    step = int(rng.integers(anchors[-1] + 1, 24))
    assert compiled.history_size == python.history_size
    # A compiler that fuses multiply-adds may move the last bit.
    np.testing.assert_allclose(
        compiled.transition(tau, anchors), python.transition(tau, anchors), rtol=1e-15, atol=1e-15
    )
    np.testing.assert_allclose(
        compiled.weights(tau, anchors, step), python.weights(tau, anchors, step), rtol=1e-15
    )


@pytest.mark.parametrize("tail", [None, 0, 9, 30])
@pytest.mark.parametrize("warmup", [1, 2, 3])
@pytest.mark.parametrize("interval", [1, 2, 5, 8])
def test_interval(interval, warmup, tail):
    compiled = planner.Interval(interval, warmup, tail)
    python = schedules.Interval(interval, warmup, tail)
    assert tuple(compiled.full_steps(40)) == python.full_steps(40)
    assert compiled.next_full([]) == 0
    assert compiled.next_full([0, 5]) == python.next_full([0, 5])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: planner.FoCa(reading="frozen"), "'reading'"),
        (lambda: planner.FoCa(feedback=-1), "'feedback'"),
        (lambda: planner.FoCa(feedback=math.nan), "'feedback'"),
        (lambda: planner.FoCa(max_carry=-1), "'max_carry'"),
        (lambda: planner.FoCa(first_slope=1.5), "'first_slope'"),
        (lambda: planner.FoCa(first_slope=math.nan), "'first_slope'"),
        (lambda: planner.TaylorSeer(4), "'order'"),
        (lambda: planner.TaylorSeer(warmup=0), "'warmup'"),
        (lambda: planner.Interval(0), "'interval'"),
        (lambda: planner.Interval(5, 0), "'warmup'"),
        (
            lambda: planner.Interval(5, tail=-5),
            "Interval: argument 'tail': expected an integer >= 0",
        ),
        (
            lambda: planner.Interval(5).full_steps(-3),
            "'num_steps': expected an integer >= 0, got -3",
        ),
        (lambda: planner.FoCa().transition([0.0], []), "'anchors'"),
        (lambda: planner.FoCa().transition([0.0, 1.0], [1, 1]), "'anchors'"),
        (lambda: planner.FoCa().transition([0.0, 1.0], [-1, 1]), "'anchors'"),
        (lambda: planner.FoCa().transition([0.0], [0, 1]), "'tau'"),
        (lambda: planner.FoCa().weights([0.0, 1.0], [0, 1], 1), "'step'"),
        (lambda: planner.TaylorSeer().weights([0.0, 1.0, 1.0], [0, 1], 2), "strictly monotone"),
        (lambda: planner.TaylorSeer().weights([0.0, math.nan, 1.0], [0, 1], 2), "tau[1]"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match="argument") as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize("tail", [None, 0, 2**63 - 1])
def test_an_interval_ends_at_the_largest_step(tail):
    """Where Python counts on, 64 bits end: never at a negative step."""
    largest = 2**63 - 1
    for interval in (largest, largest - 2):
        compiled = planner.Interval(interval, tail=tail)
        python = schedules.Interval(interval, tail=tail)
        assert compiled.full_steps(10) == list(python.full_steps(10))
        for last in (2, 3, largest - 1, largest):
            due = python.next_full([0, 1, last])
            assert compiled.next_full([0, 1, last]) == min(due, largest)
