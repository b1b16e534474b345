"""Schedules and time variables."""

import numpy as np
import pytest

from foca_dit import times
from foca_dit.schedules import (
    NEVER,
    Decision,
    FullSteps,
    Interval,
    Outlook,
    Schedule,
    Situation,
    StepMask,
)


def test_documented_lists():
    assert Interval(5, warmup=3).full_steps(50) == (0, 1, 2, 7, 12, 17, 22, 27, 32, 37, 42, 47)
    assert Interval(3, warmup=2).full_steps(50) == (0, *range(1, 50, 3))


@pytest.mark.parametrize(
    ("warmup", "interval", "count"),
    [(3, 5, 12), (3, 7, 9), (3, 8, 8), (2, 2, 26), (2, 3, 18), (2, 5, 11)],
)
def test_counts_that_reproduce_the_papers_flops(warmup, interval, count):
    assert len(Interval(interval, warmup).full_steps(50)) == count


def test_the_papers_flops_columns():
    full, skipped = 3719.50 / 50, 0.0
    for interval, flops in ((5, 893.54), (7, 670.44), (8, 596.07)):
        cost = len(Interval(interval).full_steps(50)) * full + skipped
        assert cost == pytest.approx(flops, rel=3e-3)


def test_interval_edges():
    assert Interval(1).full_steps(4) == (0, 1, 2, 3)
    assert Interval(4, warmup=1).full_steps(10) == (0, 4, 8)
    assert Interval(5, warmup=9).full_steps(4) == (0, 1, 2, 3)
    assert Interval(5).full_steps(0) == ()
    assert Interval(5).next_full([]) == 0


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (10, (0, 1, 6, 10, 11, 12)),
        (11, (0, 1, 6, 11, 12)),
        (0, tuple(range(13))),
        (13, (0, 1, 6, 11)),
        (7, (0, 1, 6, 7, 8, 9, 10, 11, 12)),
    ],
)
def test_tail(tail, expected):
    assert Interval(5, warmup=2, tail=tail).full_steps(13) == expected


def test_fixed_steps():
    schedule = FullSteps([0, 1, 2, 4, 8])
    assert schedule.full_steps(50) == (0, 1, 2, 4, 8)
    assert schedule.full_steps(5) == (0, 1, 2, 4)
    assert schedule.next_full([0, 1, 3]) == 4
    assert schedule.next_full([8]) == NEVER
    assert schedule == FullSteps((0, 1, 2, 4, 8))
    assert FullSteps(np.array([0, 3])).steps == (0, 3)


def test_mask():
    mask = np.array([[True, True], [False, True], [True, False], [False, False]])
    schedule = StepMask(mask)
    assert schedule.full_steps(4, feature=0) == (0, 2)
    assert schedule.full_steps(4, feature=1) == (0, 1)
    assert schedule.next_full([2], feature=0) == NEVER
    mask[3] = True  # the schedule keeps a copy
    assert schedule.full_steps(4, feature=0) == (0, 2)
    assert schedule != StepMask(mask)
    assert schedule == StepMask([[True, True], [False, True], [True, False], [False, False]])
    with pytest.raises(ValueError, match="argument 'feature'"):
        schedule.next_full([0], feature=2)


def test_an_adaptive_schedule_of_ones_own():
    class Halving(Schedule):
        uses_defects = True

        def next_full(self, anchors, feature=0):
            return anchors[-1] + 1 if anchors else 0

        def decide(self, seen):
            return Decision(seen.anchors[-1] + (1 if seen.defects[-1] > 0.1 else 4))

    schedule, outlook = Halving(), Outlook((0.0, 1.0), (1.0, 1.0))
    assert schedule.decide(Situation([0, 1], [1.0, 0.5], outlook)).next_full == 2
    assert schedule.decide(Situation([0, 1], [1.0, 0.01], outlook)).next_full == 5
    with pytest.raises(ValueError, match="adaptive"):
        schedule.full_steps(50)


@pytest.mark.parametrize("name", times.names())
def test_times_are_finite_and_strictly_monotone_up_to_the_ends(name):
    variable = times.get(name)
    assert variable.name == name
    steps = np.arange(200)
    for shift in (1, 3, 17):
        t = np.linspace(1, 0, 200)
        for tau in (
            variable.flow(steps, shift * t / (1 + (shift - 1) * t)),
            variable.ddpm(steps, t),
        ):
            assert tau.shape == (200,)
            assert tau.dtype == np.float64
            assert np.isfinite(tau).all()
            difference = np.diff(tau)
            assert (difference > 0).all() or (difference < 0).all()


def test_a_controller_measures_log_snr_with_shorter_ends():
    sigma = np.array([1.0, 0.98, 0.5, 0.02, 0.0])
    own, paced = times.get("log_snr").flow(0, sigma), times.paced("log_snr").flow(0, sigma)
    assert (np.diff(paced) > 0).all()
    ends, middle = [0, -1], [1, 2]
    shrunk = np.diff(paced) / np.diff(own)
    assert (shrunk[ends] < 0.25).all()
    assert (shrunk[middle] > 0.8).all()
    data = (1 - sigma) / np.hypot(1 - sigma, sigma)  # the same shares, of variance 1
    levels = times.paced("log_snr").ddpm(0, data**2)
    end = np.log(1.02 / 0.02)
    np.testing.assert_allclose(levels[[0, 2, -1]], [-end, 0.0, end], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(levels, paced, atol=0.02)  # noise is noise, by whichever sampler
    for other in ("step", "sigma", float):
        assert times.paced(other) is other


def test_times_by_hand():
    assert times.get("step").flow(3, 0.7) == 3
    assert times.get("sigma").flow(3, 0.7) == 0.7
    assert float(times.get("log_snr").flow(0, 0.5)) == 0
    assert float(times.get("log_snr").flow(0, 0.2)) == pytest.approx(np.log(4), abs=5e-3)
    assert float(times.get("log_snr").flow(0, 1.0)) == pytest.approx(np.log(1e-3), abs=2e-3)
    assert float(times.get("log_snr").ddpm(0, 0.8)) == pytest.approx(np.log(4) / 2, abs=1e-5)
    assert float(times.get("sigma").ddpm(0, 0.8)) == pytest.approx(0.5, abs=1e-5)
    # The two are one variable: sigma = exp(-half log-SNR).
    abar = np.linspace(0, 1, 11)
    sigma, log_snr = times.get("sigma").ddpm(0, abar), times.get("log_snr").ddpm(0, abar)
    np.testing.assert_allclose(np.log(sigma), -log_snr, atol=1e-12)
