"""Forecast weights by ridge least squares, from Gram matrices alone.

A forecast of step i from the anchors a, a', .. is `sum_p w_p F_{a_p}`; its weights sum to one, so
a constant feature is always met. They minimise

    || sum_p w_p F_{a_p} - F_i ||^2 + noise^2 sum_p w_p^2 || F_{a_p} ||^2

The second term, the ridge, is what the forecast makes of a relative error `noise` in every anchor:
while the cache runs, the anchors are computed from an image that is slightly off already.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foca_dit.calibration.grams import Array

NOISE = 1e-3


def forecast_error(
    gram: Array, anchors: Sequence[int], step: int, weights: Sequence[float]
) -> float:
    """The squared error of a linear forecast, `|| sum_p w_p F_{a_p} - F_step ||^2`.

    Args:
        gram: [S, S], the inner products of the features.
        anchors: the steps read, one per weight.
        step: the step forecast.
        weights: w.
    """
    coefficients = np.zeros(len(gram))
    np.add.at(coefficients, list(anchors), np.asarray(weights, dtype=np.float64))
    coefficients[step] -= 1.0
    return max(float(coefficients @ gram @ coefficients), 0.0)


def pair_fits(
    gram: Array, anchor: int, step: int, noise: float = NOISE
) -> tuple[Array, Array, Array]:
    """The best forecasts of a step from a newest anchor and every pair of older ones, at once.

    Args:
        gram: [S, S], the inner products of the features.
        anchor: the newest anchor a.
        step: the step to forecast, after it.
        noise: relative error of an anchor.

    Returns:
        (cost, w_q, w_p), float64 [a + 1, a + 1], over p (rows) and q (columns): the minimised
        objective and the weights of F_q and F_p. Only p <= q is meant; p = q stands for one older
        anchor, q = a for none.
    """
    g, n = gram, anchor + 1
    base = g[anchor, anchor]
    to_anchor, own = g[anchor, :n], np.diag(g)[:n]
    ridge = noise**2
    normal = g[:n, :n] - to_anchor[:, None] - to_anchor[None, :] + base
    right = g[step, :n] - g[step, anchor] - to_anchor + base + ridge * base
    total = g[step, step] - 2 * g[step, anchor] + base + ridge * base
    diagonal = np.diag(normal) + ridge * (own + base)
    cross = normal + ridge * base
    # Cramer's rule for [[d_q, c], [c, d_p]] w = [r_q, r_p]; a pair that says the same twice (p = q,
    # or without noise an anchor equal to the newest) is solved for q alone.
    d_p, d_q = diagonal[:, None], diagonal[None, :]
    determinant = d_p * d_q - cross**2
    single = (determinant <= 1e-13 * d_p * d_q) | np.eye(n, dtype=bool)
    single |= np.arange(n)[None, :] == anchor
    safe = np.where(single, 1.0, determinant)
    r_p, r_q = right[:, None], right[None, :]
    alone = np.where(d_q > 0, r_q / np.where(d_q > 0, d_q, 1.0), 0.0)
    alone = np.where(np.arange(n)[None, :] == anchor, 0.0, alone)
    w_q = np.where(single, alone, (r_q * d_p - r_p * cross) / safe)
    w_p = np.where(single, 0.0, (r_p * d_q - r_q * cross) / safe)
    cost = total - 2 * (w_q * r_q + w_p * r_p) + w_q**2 * d_q + w_p**2 * d_p + 2 * w_q * w_p * cross
    return np.maximum(cost, 0.0), w_q, w_p
