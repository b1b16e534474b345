"""Plans: tables worked out beforehand, written and read back exactly."""

import json
import math

import numpy as np
import pytest
import scheme_oracles as oracle

from foca_dit import schemes
from foca_dit.plan import Plan
from foca_dit.schedules import FullSteps, Interval, StepMask

TAU = np.cumsum(np.random.default_rng(1).uniform(0.5, 2, 20)) * -1


@pytest.mark.parametrize("name", schemes.names())
def test_round_trip_is_exact(name):
    plan = Plan.build(schemes.get(name), Interval(4), TAU)
    back = Plan.from_json(plan.to_json())
    assert back == plan
    assert hash(back) == hash(plan)
    for mine, theirs in zip(plan.tables, back.tables, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert back.tau == tuple(TAU.tolist())
    assert schemes.build(back.scheme) == schemes.get(name)
    assert Plan.from_json(plan.to_json(indent=1)) == plan


def test_a_plan_holds_the_schemes_tables():
    scheme = schemes.FoCa(feedback=1.0, max_carry=math.inf)
    plan = Plan.build(scheme, FullSteps([0, 1, 4, 9]), TAU)
    assert plan.num_steps == 20
    assert plan.full_steps == (0, 1, 4, 9)
    np.testing.assert_array_equal(plan.transition(4), scheme.transition(TAU, [0, 1, 4]))
    np.testing.assert_array_equal(plan.weights(7), scheme.weights(TAU, [0, 1, 4], 7))
    with pytest.raises(ValueError, match="a full step"):
        plan.transition(5)
    with pytest.raises(ValueError, match="a skipped step"):
        plan.weights(4)
    with pytest.raises(ValueError, match="a skipped step"):
        plan.weights(20)


def test_running_the_json_alone_gives_the_schemes_forecasts():
    """What an engine does with the file, in a dozen lines."""
    scheme = schemes.TaylorSeer(2)
    features = np.random.default_rng(2).normal(size=(20, 3))
    data = json.loads(Plan.build(scheme, Interval(4), TAU).to_json())
    history = [np.zeros(3)] * data["history_size"]
    used = []
    for step, entry in enumerate(data["steps"]):
        if "transition" in entry:
            values = [*history, features[step]]
            history = [
                sum(m * v for m, v in zip(row, values, strict=True)) for row in entry["transition"]
            ]
            used.append(features[step])
        else:
            used.append(sum(w * h for w, h in zip(entry["weights"], history, strict=True)))
    expected = oracle.step_tables(scheme, features, Interval(4).full_steps(20), TAU)
    np.testing.assert_allclose(used, expected, rtol=1e-12)


def test_features_may_differ():
    mask = np.ones((20, 2), dtype=bool)
    mask[5:9, 1] = False
    assert Plan.build(schemes.FoCa(), StepMask(mask), TAU, feature=0).full_steps == tuple(range(20))
    assert 6 not in Plan.build(schemes.FoCa(), StepMask(mask), TAU, feature=1).full_steps


def _change(**changes):
    def apply(data):
        data.update(changes)

    return apply


def _without(key):
    return lambda data: data.pop(key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_change(format="other"), "'foca-plan'"),
        (_change(version=2), "'version': expected 1, got 2"),
        (_without("tau"), "'tau'"),
        (_without("scheme"), "'scheme'"),
        (_change(scheme={}), "'scheme'"),
        (_change(history_size=2), "'tables[0]': expected shape [2, 3], got shape [3, 4]"),
        (_change(history_size=0), "'history_size'"),
        (_change(history_size=9), "'history_size': expected at most 8, got 9"),
        (_change(history_size="3"), "'history_size': expected an integer, got '3'"),
        (lambda d: d["steps"][0]["transition"][1].__setitem__(0, 1), "reads no old history"),
        (lambda d: d["steps"][4].update(weights=[1e300, 0, 0]), "finite in float32"),
        (_change(tau=[0.0] * 20), "strictly monotone"),
        (_change(tau=[]), "at least one time"),
        (_change(tau=["x"] * 20), "'tau[0]'"),
        (_change(tau=3), "'tau': expected a list"),
        (_change(steps=[]), "'full_steps'"),
        (lambda d: d["steps"].pop(), "20 tables"),
        (lambda d: d["steps"].__setitem__(0, {"weights": [1, 0, 0]}), "start with 0"),
        (lambda d: d["steps"].__setitem__(4, {}), "'steps[4]'"),
        (lambda d: d["steps"][4].update(transition=[]), "either 'transition' or 'weights'"),
        (lambda d: d["steps"][4].update(weights=[1, 0]), "tables[4]"),
        (lambda d: d["steps"][4].update(weights=[1, 0, None]), "'steps[4]'"),
        (lambda d: d["steps"][0].update(transition=[[0, 0, 0, 1], [0]]), "rows of one length"),
    ],
)
def test_files_are_checked(change, words):
    data = json.loads(Plan.build(schemes.FoCa(), Interval(4), TAU).to_json())
    change(data)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Plan.from_json(json.dumps(data))
    assert words in str(caught.value)


def test_not_json_and_not_finite():
    with pytest.raises(ValueError, match="Expecting value"):
        Plan.from_json("plan")
    with pytest.raises(ValueError, match="foca-plan"):
        Plan.from_json("[]")
    with pytest.raises(ValueError, match="nested too deep"):
        Plan.from_json("[" * 100_000)
    text = Plan.build(schemes.FoCa(), Interval(4), TAU).to_json()
    with pytest.raises(ValueError, match="finite numbers"):
        Plan.from_json(text.replace("[1.0, ", "[NaN, ", 1))
    with pytest.raises(ValueError, match="finite numbers"):
        Plan.from_json(text.replace("[1.0, ", f"[{10**400}, ", 1))
