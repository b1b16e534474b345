"""Bad arguments: each refused with a message that names it."""

import math

import pytest

from foca_dit import schedules, schemes, times

TAU = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: schemes.TaylorSeer(0), ValueError, "TaylorSeer: argument 'order'"),
        (lambda: schemes.TaylorSeer(4), ValueError, "an integer from 1 to 3, got 4"),
        (lambda: schemes.TaylorSeer(1.0), TypeError, "TaylorSeer: argument 'order'"),
        (lambda: schemes.TaylorSeer(True), TypeError, "got True"),
        (lambda: schemes.TaylorSeer(official=1), TypeError, "argument 'official'"),
        (lambda: schemes.TaylorSeer(warmup=0), ValueError, "argument 'warmup'"),
        (lambda: schemes.HiCache(scale=math.inf), ValueError, "argument 'scale'"),
        (lambda: schemes.HiCache(order=5), ValueError, "argument 'order'"),
        (lambda: schemes.HiCache(warmup=-1), ValueError, "argument 'warmup'"),
        (lambda: schemes.Newton(0), ValueError, "Newton: argument 'order'"),
        (lambda: schemes.AdamsBashforth(9), ValueError, "AdamsBashforth: argument 'order'"),
        (lambda: schemes.BDF2("sliding"), ValueError, "'rolling' or 'frozen', got 'sliding'"),
        (lambda: schemes.FoCa("frozen"), ValueError, "'rolling' or 'anchored', got 'frozen'"),
        (lambda: schemes.FoCa(feedback=-0.1), ValueError, "FoCa: argument 'feedback'"),
        (lambda: schemes.FoCa(feedback=math.inf), ValueError, "a finite number >= 0, got inf"),
        (lambda: schemes.FoCa(feedback="1"), TypeError, "argument 'feedback'"),
        (lambda: schemes.FoCa(max_carry=math.nan), ValueError, "argument 'max_carry'"),
        (lambda: schemes.FoCa(first_slope=1.5), ValueError, "argument 'first_slope'"),
        (lambda: schemes.TwoParameter(alpha=math.nan), ValueError, "argument 'alpha'"),
        (lambda: schemes.TwoParameter(beta=None), TypeError, "argument 'beta'"),
        (lambda: schemes.DampedTrend(1.1), ValueError, "a finite number from 0 to 1, got 1.1"),
        (lambda: schemes.GOC(-1.0), ValueError, "argument 'eta'"),
        (lambda: schemes.GOC(inflection_steps=[1, -2]), ValueError, "inflection_steps[1]"),
        (lambda: schemes.GOC(inflection_steps=3), TypeError, "argument 'inflection_steps'"),
        (lambda: schemes.get("focca"), ValueError, "one of reuse, taylorseer"),
        (lambda: schemes.get("foca", order=2), TypeError, "'foca'"),
        (lambda: schedules.Interval(0), ValueError, "Interval: argument 'interval'"),
        (lambda: schedules.Interval(5, warmup=0), ValueError, "argument 'warmup'"),
        (lambda: schedules.Interval(5, tail=-1), ValueError, "argument 'tail'"),
        (lambda: schedules.FullSteps([]), ValueError, "start with 0"),
        (lambda: schedules.FullSteps([1, 2]), ValueError, "start with 0"),
        (lambda: schedules.FullSteps([0, 2, 2]), ValueError, "strictly increasing"),
        (lambda: schedules.FullSteps([0, 2.5]), TypeError, "steps[1]"),
        (lambda: schedules.StepMask([[1, 0]]), ValueError, "StepMask: argument 'mask'"),
        (lambda: schedules.StepMask([True, False]), ValueError, "[steps, features]"),
        (lambda: schedules.StepMask([[True, False]]), ValueError, "False for feature 1"),
        (lambda: times.get("t"), ValueError, "one of step, sigma, log_snr, got 't'"),
        (lambda: times.get("sigma").flow(0, 1.5), ValueError, "'sigma': expected values from 0"),
        (lambda: times.get("log_snr").ddpm(0, [0.5, math.nan]), ValueError, "'alpha_bar'"),
    ],
)
def test_constructors(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("tau", "anchors", "step", "error", "words"),
    [
        (TAU, [], 1, ValueError, "argument 'anchors': expected at least one step"),
        (TAU, [0, 2, 2], 4, ValueError, "argument 'anchors': expected strictly increasing"),
        (TAU, [0, 1.5], 4, TypeError, "argument 'anchors[1]'"),
        (TAU, [-1, 1], 4, ValueError, "argument 'anchors[0]'"),
        (TAU, [0, 2], 2, ValueError, "argument 'step': expected a step after the last anchor 2"),
        (TAU, [0, 2], 6, ValueError, "argument 'tau': expected a time for every step up to 6"),
        ([0, 1, 1, 2], [0, 1], 3, ValueError, "strictly monotone times, got 1.0 then 1.0"),
        ([0, 1, 0.5, 2], [0, 1], 3, ValueError, "at steps 1 and 2"),
        ([0, math.nan, 2, 3], [0, 2], 3, ValueError, "argument 'tau[1]': expected a finite time"),
    ],
)
@pytest.mark.parametrize("name", schemes.names())
def test_tables(name, tau, anchors, step, error, words):
    scheme = schemes.get(name)
    with pytest.raises(error) as caught:
        scheme.weights(tau, anchors, step)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{type(scheme).__name__}: argument '")


def test_transition_checks_its_arguments_too():
    with pytest.raises(ValueError, match="argument 'anchors'"):
        schemes.FoCa().transition(TAU, [])
    with pytest.raises(ValueError, match="up to 9"):
        schemes.FoCa().transition(TAU, [0, 9])


@pytest.mark.parametrize(
    ("full_steps", "tau", "words"),
    [
        ([1, 2], None, "'full_steps': expected strictly increasing steps that start with 0"),
        ([0, 2, 1], None, "strictly increasing"),
        ([], None, "start with 0"),
        ([0, 6], None, "'full_steps[1]': expected an integer from 0 to 5, got 6"),
        ([0, 2], [0.0, 1.0], "'tau': expected 6 times, got 2"),
        ([0, 2], [0.0, 1, 2, 3, 3, 4], "strictly monotone"),
    ],
)
def test_run_reference(full_steps, tau, words):
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="run_reference") as caught:
        schemes.run_reference(schemes.FoCa(), torch.zeros(6, 2), full_steps, tau)
    assert words in str(caught.value)


def test_two_sources_of_steps_before_the_first_anchor_are_ignored():
    # Times before the first anchor may be anything: a reset can happen in mid-run.
    tau = [math.nan, 7.0, 0.0, 1.0, 2.0]
    assert schemes.FoCa().weights(tau, [2, 3], 4).tolist() == [1, 1, 0.25]
