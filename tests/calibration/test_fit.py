"""Weights and placement from Gram matrices, against features, brute force and known answers."""

import itertools

import numpy as np
import pytest

from foca_dit.calibration.fit import forecast_error, pair_fits
from foca_dit.calibration.joint import coherence, fit_jointly, refine
from foca_dit.calibration.placement import interval_costs, place


def smooth_features(steps: int, size: int = 40, seed: int = 0) -> np.ndarray:
    """Random sums of slow waves [S, size]."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, steps)[:, None]
    waves = np.sin(rng.uniform(1, 7, 6) * t + rng.uniform(0, 6, 6))
    return waves @ rng.normal(size=(6, size))


def noisy_gram(steps: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = smooth_features(steps, seed=seed) + 0.1 * rng.normal(size=(steps, 40))
    return x @ x.T


def ridge_weights(gram, anchors, step, noise):
    """The best forecast of one step from any anchors, newest first, by its normal equations."""
    newest, older = anchors[0], list(anchors[1:])
    weights = np.ones(1 + len(older))
    if older:
        base = gram[newest, newest]
        to_newest = gram[newest, older]
        normal = gram[np.ix_(older, older)] - to_newest[:, None] - to_newest[None, :] + base
        right = gram[step, older] - gram[step, newest] - to_newest + base
        ridge = noise**2
        normal = normal + ridge * (np.diag(gram[older, older]) + base)
        right = right + ridge * base
        # Anchors that say the same thing share their weight.
        weights[1:] = np.linalg.lstsq(normal, right, rcond=1e-14)[0]
    weights[0] = 1.0 - weights[1:].sum()
    return weights


def test_error_from_the_gram_matrix_is_the_error_of_the_features():
    x = smooth_features(10)
    weights = [1.7, -0.9, 0.2]
    direct = np.square(1.7 * x[6] - 0.9 * x[4] + 0.2 * x[1] - x[8]).sum()
    assert forecast_error(x @ x.T, [6, 4, 1], 8, weights) == pytest.approx(direct, rel=1e-10)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_ridge_is_exact_on_polynomials_and_finds_lagranges_weights(degree):
    t = np.arange(12.0)
    rng = np.random.default_rng(1)
    x = sum(t[:, None] ** d * rng.normal(size=30) for d in range(degree + 1))
    anchors = [7, 4, 2]
    weights = ridge_weights(x @ x.T, anchors, 10, noise=0.0)
    assert weights.sum() == pytest.approx(1.0)
    assert np.abs(weights @ x[anchors] - x[10]).max() < 1e-6 * np.abs(x).max()
    if degree == 2:
        lagrange = [np.prod([(10 - b) / (a - b) for b in anchors if b != a]) for a in anchors]
        np.testing.assert_allclose(weights, lagrange, rtol=1e-5)


def test_ridge_minimises_its_objective():
    gram, anchors, noise = noisy_gram(9, 3), [6, 3, 1], 0.05

    def objective(w):
        own = noise**2 * sum(v**2 * gram[a, a] for v, a in zip(w, anchors, strict=True))
        return forecast_error(gram, anchors, 8, w) + own

    best = ridge_weights(gram, anchors, 8, noise)
    for direction in ([1, -1, 0], [0, 1, -1], [1, 1, -2]):
        for size in (1e-3, -1e-3):
            assert objective(best + size * np.array(direction)) > objective(best)
    # More noise, smaller weights.
    assert np.abs(ridge_weights(gram, anchors, 8, 1.0)).sum() < np.abs(best).sum()


@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_pair_fits_agree_with_single_fits(noise):
    gram, a, step = noisy_gram(9, 2), 6, 8
    cost, w_q, w_p = pair_fits(gram, a, step, noise)
    for p, q in itertools.combinations(range(a), 2):
        weights = ridge_weights(gram, [a, q, p], step, noise)
        np.testing.assert_allclose([w_q[p, q], w_p[p, q]], weights[1:], rtol=1e-6, atol=1e-9)
        ridge = sum(noise**2 * w**2 * gram[s, s] for w, s in zip(weights, [a, q, p], strict=True))
        error = forecast_error(gram, [a, q, p], step, weights) + ridge
        assert cost[p, q] == pytest.approx(error, rel=1e-6, abs=1e-9)
    one = ridge_weights(gram, [a, 3], step, noise)
    assert w_q[3, 3] == pytest.approx(one[1], rel=1e-6)
    reuse = forecast_error(gram, [a], step, [1.0]) + noise**2 * gram[a, a]
    assert cost[a, a] == pytest.approx(reuse)


def brute_force(gram, weights, budget, history, noise, forced):
    """Every placement of a budget, each step fitted by itself."""
    steps, best = len(gram), (np.inf, ())
    for rest in itertools.combinations(range(1, steps), budget - 1):
        full = (0, *rest)
        if not set(forced) <= set(full):
            continue
        total = 0.0
        for i in set(range(steps)) - set(full):
            anchors = [a for a in reversed(full) if a < i][:history]
            w = ridge_weights(gram, anchors, i, noise)
            ridge = sum(noise**2 * v**2 * gram[a, a] for v, a in zip(w, anchors, strict=True))
            total += weights[i] * (forecast_error(gram, anchors, i, w) + ridge)
        best = min(best, (total, full))
    return best


@pytest.mark.parametrize("history", [1, 2, 3])
@pytest.mark.parametrize("forced", [(0,), (0, 1)])
def test_placement_equals_brute_force(history, forced):
    steps, noise = 9, 1e-2
    for seed in range(3):
        gram = noisy_gram(steps, seed)
        weights = np.random.default_rng(seed).uniform(0.2, 2, steps)
        costs = interval_costs(gram, weights, history, noise, forced)
        placed = place(costs, [2, 4, 5])
        for budget in (2, 4, 5):
            cost, full = brute_force(gram, weights, budget, history, noise, forced)
            assert placed[budget].full_steps == full
            assert placed[budget].cost == pytest.approx(cost, rel=1e-6)


def test_placement_at_its_ends():
    gram = noisy_gram(6, 0)
    placed = place(interval_costs(gram, np.ones(6)), [1, 6])
    assert placed[1].full_steps == (0,)
    assert placed[6].full_steps == tuple(range(6))
    assert placed[6].cost == 0
    with pytest.raises(ValueError, match="'budgets': expected numbers from 1 to 6, got 7"):
        place(interval_costs(gram, np.ones(6)), [7])
    with pytest.raises(ValueError, match="'history': expected an integer from 1 to 3, got 4"):
        interval_costs(gram, np.ones(6), history=4)


def test_full_steps_go_where_the_features_bend():
    """A path that is straight but for a bend between steps 20 and 24."""
    t = np.arange(40.0)
    bend = np.clip(t - 20, 0, 4) ** 2 + 8 * np.clip(t - 24, 0, None)
    x = np.stack([t, bend, np.ones(40)], axis=1)
    full = place(interval_costs(x @ x.T, np.ones(40), noise=1e-6), [7])[7].full_steps
    assert len([s for s in full if 20 <= s <= 27]) >= 3


def objective(gram, c, kernel, weights, full):
    """The joint objective by its definition, on features rebuilt from the Gram matrix."""
    values, vectors = np.linalg.eigh(gram)
    x = vectors * np.sqrt(np.clip(values, 0, None))
    errors = {}
    for i, w in weights.items():
        anchors = [a for a in reversed(full) if a < i][: len(w)]
        errors[i] = c[i] * (w @ x[anchors] - x[i])
    return sum(kernel[i, j] * errors[i] @ errors[j] for i in errors for j in errors)


def test_joint_fit_minimises_the_accumulated_error():
    gram, full = noisy_gram(12, 4), [0, 1, 4, 8]
    c, kernel = np.linspace(1, 2, 12), coherence(12)
    fitted = fit_jointly(gram, c, full, history=3, noise=0.0)
    least = objective(gram, c, kernel, fitted.weights, full)
    assert fitted.cost == pytest.approx(least, rel=1e-6)
    singly = {
        i: ridge_weights(gram, [a for a in reversed(full) if a < i][:3], i, 0.0)
        for i in fitted.weights
    }
    assert least < 0.98 * objective(gram, c, kernel, singly, full)
    for i in (2, 6, 10):
        for size in (1e-3, -1e-3):
            moved = {k: w.copy() for k, w in fitted.weights.items()}
            moved[i][:2] += [size, -size]
            assert objective(gram, c, kernel, moved, full) > least


def test_joint_fit_with_the_identity_fits_every_step_by_itself():
    gram, full = noisy_gram(12, 5), [0, 1, 4, 8]
    fitted = fit_jointly(gram, np.ones(12), full, 3, noise=1e-2, kernel=np.eye(12))
    for i, weights in fitted.weights.items():
        anchors = [a for a in reversed(full) if a < i][:3]
        np.testing.assert_allclose(weights, ridge_weights(gram, anchors, i, 1e-2), rtol=1e-6)


@pytest.mark.parametrize("history", [1, 3])
def test_the_joint_cost_holds_the_whole_ridge(history):
    """With the identity it is the sum of what the dynamic programming costs of the same steps."""
    gram, full, noise = noisy_gram(12, 5), (0, 1, 4, 8), 0.1
    c = np.linspace(1, 2, 12)
    placed = place(interval_costs(gram, c**2, history, noise, full), [4])[4]
    assert placed.full_steps == full
    fitted = fit_jointly(gram, c, full, history, noise, kernel=np.eye(12))
    assert fitted.cost == pytest.approx(placed.cost, rel=1e-6)


def test_the_ridge_weighs_as_the_steps_own_error_does():
    """c_i^2 K_ii noise^2 sum_p w_p^2 |F_p|^2 beside the errors, under a K whose diagonal varies."""
    gram, full, noise = noisy_gram(12, 7), [0, 1, 4, 8], 0.2
    c, kernel = np.linspace(1, 2, 12), coherence(12)
    fitted = fit_jointly(gram, c, full, 3, noise)

    def total(weights):
        ridge = sum(
            noise**2 * c[i] ** 2 * kernel[i, i] * (w**2 @ np.diag(gram)[before_step(full, i)])
            for i, w in weights.items()
        )
        return objective(gram, c, kernel, weights, full) + ridge

    assert fitted.cost == pytest.approx(total(fitted.weights), rel=1e-9)
    for i in fitted.weights:
        for older in range(1, len(fitted.weights[i])):
            for size in (1e-3, -1e-3):
                moved = {k: w.copy() for k, w in fitted.weights.items()}
                moved[i][[0, older]] += [size, -size]
                assert total(moved) > fitted.cost


def before_step(full, step):
    return [a for a in reversed(full) if a < step][:3]


def test_refining_lowers_the_objective_and_keeps_the_first_steps():
    gram, c = noisy_gram(20, 6), np.ones(20)
    start = (0, 1, 2, 3, 4)
    better = refine(gram, c, start, 3)
    assert better[:2] == (0, 1)
    assert len(better) == 5
    assert fit_jointly(gram, c, better, 3).cost < 0.5 * fit_jointly(gram, c, start, 3).cost
