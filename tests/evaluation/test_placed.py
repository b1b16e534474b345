"""LeMiCa's and MeanCache's paths, errors and velocities; SmoothCache's scan."""

import itertools

import numpy as np
import pytest
import torch

from foca_dit import FullSteps, schemes
from foca_dit.config import FoCaCacheConfig
from foca_dit.evaluation import own
from foca_dit.evaluation.masked import component_errors, smooth_schedule
from foca_dit.evaluation.paths import lexicographic_minimax, shortest
from foca_dit.evaluation.placed import (
    MeanCache,
    mean_velocity,
    segment_errors,
    transition_errors,
)
from foca_dit.evaluation.setting import Absent

STEPS = 7


@pytest.fixture
def edges():
    random = np.random.default_rng(0)
    return {
        (i, j): round(float(random.random()), 1)  # rounded, so that there are ties
        for i in range(STEPS)
        for j in range(i + 1, STEPS + 1)
    }


def all_paths(edges, budget):
    for inner in itertools.combinations(range(1, STEPS), budget - 1):
        nodes = [0, *inner, STEPS]
        yield [edges[pair] for pair in itertools.pairwise(nodes)], nodes[:-1]


@pytest.mark.parametrize("budget", [1, 3, 5, 7])
def test_lexicographic_minimax_beats_every_other_path(edges, budget):
    chosen = lexicographic_minimax(edges, STEPS, budget)
    errors = sorted((edges[pair] for pair in itertools.pairwise([*chosen, STEPS])), reverse=True)
    assert len(chosen) == budget
    assert errors == min(sorted(e, reverse=True) for e, _ in all_paths(edges, budget))


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_shortest_path_beats_every_other_path(edges, power):
    chosen = shortest(edges, STEPS, 4, power)
    total = sum(edges[pair] ** power for pair in itertools.pairwise([*chosen, STEPS]))
    best = min(sum(error**power for error in errors) for errors, _ in all_paths(edges, 4))
    assert total == pytest.approx(best)


def test_segments_that_are_too_short_are_said_so():
    with pytest.raises(Absent, match="no path of 2 full steps"):
        shortest({(i, i + 1): 0.0 for i in range(5)}, 5, 2, 1.0)


def test_lemicas_errors_are_those_of_real_generations(setting):
    """Edge (3, 6): the same as this project's cache with all steps full but 4 and 5."""
    errors = segment_errors(setting, gap=3, images=2)
    other = setting.calibration()
    full = other.draw().images[:2]
    schedule = FullSteps([s for s in range(setting.steps) if s not in (4, 5)])
    config = FoCaCacheConfig(scheme=schemes.Reuse(), schedule=schedule, granularity="stack")
    images = own.cached(other, config).images[:2]
    assert errors[3, 6] == pytest.approx(float((images - full).abs().mean()), rel=1e-3)
    assert errors[3, 6] > 0
    assert errors[3, 4] == 0
    assert max(j - i for i, j in errors) == 3
    assert (10, 12) in errors


def test_mean_velocity_of_one_step_is_reuse():
    used = [torch.tensor([float(value)]) for value in (3.0, -1.0, 2.0)]
    sigmas = [1.0, 0.8, 0.7, 0.4, 0.1]
    torch.testing.assert_close(mean_velocity(used, sigmas, 3, 1), used[-1])


def test_mean_velocity_by_hand():
    """K = 2: u over steps 1 and 2, jvp = (v_1 - u) / (sigma_3 - sigma_1)."""
    used = [torch.tensor([float(value)]) for value in (9.0, 4.0, 2.0)]
    sigmas = [1.0, 0.8, 0.6, 0.3, 0.1]
    u = (4.0 * (0.6 - 0.8) + 2.0 * (0.3 - 0.6)) / (0.3 - 0.8)
    jvp = (4.0 - u) / (0.3 - 0.8)
    expected = torch.tensor([2.0 - jvp * (0.1 - 0.3)])
    torch.testing.assert_close(mean_velocity(used, sigmas, 3, 2), expected)
    # More steps than there are: all of them.
    whole = mean_velocity(used, sigmas, 3, 3)
    torch.testing.assert_close(mean_velocity(used, sigmas, 3, 9), whole)


def test_constant_velocity_has_no_transition_error():
    sigmas = [1 - k / 10 for k in range(11)]
    table = transition_errors([torch.ones(4)] * 10, sigmas, gap=4)
    assert max(error for error, _ in table.values()) == pytest.approx(0, abs=1e-6)
    assert {j - i for i, j in table} == {1, 2, 3, 4}


def test_transition_errors_by_hand():
    """One skipped step after the first: only reuse is possible."""
    sigmas = [1.0, 0.7, 0.6]
    velocities = [torch.tensor([2.0]), torch.tensor([5.0])]
    error, span = transition_errors(velocities, sigmas, gap=2)[0, 2]
    assert error == pytest.approx(abs((2.0 - 5.0) * (0.6 - 0.7) / (0.6 - 1.0)))
    assert span == 1


def test_meancache_steps_where_it_is_told_and_computes_elsewhere(setting):
    model = MeanCache(setting.model, {3: 1, 4: 2, 7: 3}, setting.sigmas)
    outcome = setting.draw(model, begin=model.begin)
    assert outcome.cost.full_steps == 9
    torch.testing.assert_close(model.used[3], model.used[2])
    expected = mean_velocity(model.used[:7], setting.sigmas, 7, 3)
    torch.testing.assert_close(model.used[7], expected)
    nothing = MeanCache(setting.model, {}, setting.sigmas)
    assert torch.equal(setting.draw(nothing, begin=nothing.begin).images, setting.draw().images)


def test_smoothcache_takes_the_longest_lag_under_the_threshold():
    nan = float("nan")
    errors = np.array(
        [
            [0.1, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, nan],
            [0.2, 0.1, 0.4, 0.4, 0.4, 0.1, nan, nan],
        ]
    )
    # 0: lag 2 -> skip 1, 2. 3: lag 1 -> skip 4. 5: lag 2 -> skip 6, 7, but the last step runs.
    expected = [True, False, False, True, False, True, False, True]
    assert smooth_schedule(errors, 0.2) == expected
    assert all(smooth_schedule(errors, 0.05))


def test_smoothcaches_errors_are_relative_to_the_later_output(setting):
    errors = component_errors(setting, 2)
    assert set(errors) == {"attn1", "ff"}
    outputs = []
    blocks = setting.model.transformer_blocks
    handles = [b.ff.register_forward_hook(lambda m, a, o: outputs.append(o)) for b in blocks]
    setting.calibration().draw()
    for handle in handles:
        handle.remove()
    by_step = [outputs[k : k + 3] for k in range(0, len(outputs), 3)]
    pairs = zip(by_step[6], by_step[4], strict=True)
    expected = np.mean([float((new - old).abs().sum() / new.abs().sum()) for new, old in pairs])
    assert errors["ff"][1, 4] == pytest.approx(expected, rel=1e-4)
    assert np.isnan(errors["ff"][1, -1])
