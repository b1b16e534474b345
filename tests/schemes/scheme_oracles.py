"""Oracles for the schemes: the source formulas, stepped literally on the values used.

Nothing here knows about tables, histories or closed forms. `step_tables` is the other side: it
applies a scheme's tables the way the kernels do, in numpy float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def irregular_times(rng: np.random.Generator, steps: int, descending: bool = False) -> Array:
    """Strictly monotone times whose gaps vary by a factor of up to four."""
    tau = np.cumsum(rng.uniform(0.5, 2.0, steps))
    return -tau if descending else tau


def step_tables(scheme, features: Array, full_steps: Sequence[int], tau: Sequence[float]) -> Array:
    """The values used when a cache applies the scheme's tables; unset slots start as NaN."""
    history = [np.full_like(features[0], np.nan)] * scheme.history_size
    used = np.empty_like(features)
    anchors: list[int] = []
    for step in range(len(features)):
        if step in full_steps:
            anchors.append(step)
            used[step] = features[step]
            table = scheme.transition(tau, anchors)
            history = [_skip_zeros(row, [*history, used[step]]) for row in table]
        else:
            used[step] = _skip_zeros(scheme.weights(tau, anchors, step), history)
    return used


def _skip_zeros(weights: Array, tensors: list[Array]) -> Array:
    terms = [w * t for w, t in zip(weights, tensors, strict=True) if w != 0]
    return sum(terms, np.zeros_like(tensors[0]))


# --- the FoCa paper's equations, on a grid with steps of any size -------------------------------


def bdf2_derivative(f_next: Array, f_k: Array, f_km1: Array, h: float, h_prev: float) -> Array:
    """Eq. 6: the BDF2 derivative at step k + 1, variable-step form (w = 1 is the paper's)."""
    w = h / h_prev
    return ((1 + 2 * w) / (1 + w) * f_next - (1 + w) * f_k + w * w / (1 + w) * f_km1) / h


def bdf2_predictor(f_k: Array, f_km1: Array, d_k: Array, h: float, h_prev: float) -> Array:
    """Eq. 7: eq. 6 solved for F_{k+1} with the derivative replaced by D_k."""
    w = h / h_prev
    return ((1 + w) ** 2 * f_k - w * w * f_km1 + (1 + w) * h * d_k) / (1 + 2 * w)


def heun_corrector(f_k: Array, d_anchor: Array, d_next: Array, h: float) -> Array:
    """Eq. 8: the anchor's slope and the slope at the predicted point, averaged."""
    return f_k + h / 2 * (d_anchor + d_next)


def forecast_calibrate(f_k: Array, f_km1: Array, d_anchor: Array, h: float, h_prev: float) -> Array:
    """What the kernel `foca::forecast_calibrate` computes."""
    return f_k + h / 2 * (d_anchor + (f_k - f_km1) / h_prev)


def foca_step(f_k: Array, f_km1: Array, d_anchor: Array, h: float, h_prev: float) -> Array:
    """Eqs. 7, 6 and 8 one after the other, D_k being the first difference."""
    d_k = (f_k - f_km1) / h_prev
    predicted = bdf2_predictor(f_k, f_km1, d_k, h, h_prev)
    d_next = bdf2_derivative(predicted, f_k, f_km1, h, h_prev)
    return heun_corrector(f_k, d_anchor, d_next, h)


def bdf2_rolling_step(f_k: Array, f_km1: Array, d_anchor: Array, h: float, h_prev: float) -> Array:
    return bdf2_predictor(f_k, f_km1, (f_k - f_km1) / h_prev, h, h_prev)


def bdf2_frozen_step(f_k: Array, f_km1: Array, d_anchor: Array, h: float, h_prev: float) -> Array:
    return bdf2_predictor(f_k, f_km1, d_anchor, h, h_prev)


def frozen_slope_heun_step(
    f_k: Array, f_km1: Array, d_anchor: Array, h: float, h_prev: float
) -> Array:
    predicted = bdf2_predictor(f_k, f_km1, d_anchor, h, h_prev)
    return heun_corrector(f_k, d_anchor, (predicted - f_k) / h, h)


def two_parameter_step(alpha: float, beta: float) -> Callable[..., Array]:
    def step(f_k: Array, f_km1: Array, d_anchor: Array, h: float, h_prev: float) -> Array:
        return f_k + h * (alpha * d_anchor + beta * (f_k - f_km1) / h_prev)

    return step


def step_recursion(
    one_step: Callable[..., Array],
    features: Array,
    full_steps: Sequence[int],
    tau: Sequence[float],
    feedback: float = 1.0,
) -> Array:
    """A one-step formula rolled over the values used.

    After a full step a, F_{k-1} is the value used at a - 1. `feedback` scales how far that value
    lies off the anchors' slope; at the second anchor it is a reused feature and is put on the
    anchors' slope altogether (start-up).
    """
    used = np.empty_like(features)
    anchors: list[int] = []
    f_km1 = slope = np.zeros_like(features[0])
    for k in range(len(features)):
        if k in full_steps:
            anchors.append(k)
            used[k] = features[k]
            if len(anchors) > 1:
                a, before = anchors[-1], anchors[-2]
                slope = (features[a] - features[before]) / (tau[a] - tau[before])
                h = tau[a] - tau[a - 1]
                innovation = (used[a] - used[a - 1]) / h - slope
                if len(anchors) == 2:
                    innovation = np.zeros_like(slope)
                f_km1 = used[a] - h * (slope + feedback * innovation)
        elif len(anchors) == 1:
            used[k] = features[anchors[0]]
        else:
            h, h_prev = tau[k] - tau[k - 1], tau[k - 1] - tau[k - 2]
            used[k] = one_step(used[k - 1], f_km1, slope, h, h_prev)
            f_km1 = used[k - 1]
    return used


def anchored_foca(features: Array, full_steps: Sequence[int], tau: Sequence[float]) -> Array:
    """One FoCa step of the whole distance, from the last anchors; D_a by eq. 6 on three anchors."""

    def forecast(anchors: list[int], k: int) -> Array:
        a, b = anchors[-1], anchors[-2]
        h, gap = tau[k] - tau[a], tau[a] - tau[b]
        d_anchor = (features[a] - features[b]) / gap
        if len(anchors) > 2:
            c = anchors[-3]
            d_anchor = bdf2_derivative(features[a], features[b], features[c], gap, tau[b] - tau[c])
        return foca_step(features[a], features[b], d_anchor, h, gap)

    return from_anchors(forecast, features, full_steps)


# --- the other schemes' source formulas ---------------------------------------------------------


def from_anchors(
    forecast: Callable[[list[int], int], Array], features: Array, full_steps: Sequence[int]
) -> Array:
    """Values used when every forecast is a function of the anchors; one anchor is reused."""
    used = np.empty_like(features)
    anchors: list[int] = []
    for k in range(len(features)):
        if k in full_steps:
            anchors.append(k)
            used[k] = features[k]
        else:
            used[k] = features[anchors[0]] if len(anchors) == 1 else forecast(anchors, k)
    return used


def divided_difference(values: Sequence[Array], nodes: Sequence[float]) -> Array:
    if len(values) == 1:
        return values[0]
    upper = divided_difference(values[1:], nodes[1:])
    lower = divided_difference(values[:-1], nodes[:-1])
    return (upper - lower) / (nodes[-1] - nodes[0])


def taylor(order: int, features: Array, full_steps: Sequence[int], tau: Sequence[float]) -> Array:
    """sum_i f[a, a', ..] j^i, the Taylor sum with i! f[..] for the i-th derivative."""

    def forecast(anchors: list[int], k: int) -> Array:
        j = tau[k] - tau[anchors[-1]]
        total = np.zeros_like(features[0])
        for i in range(min(order, len(anchors) - 1) + 1):
            nodes = anchors[-1 - i :]
            total += j**i * divided_difference(
                [features[n] for n in nodes], [tau[n] for n in nodes]
            )
        return total

    return from_anchors(forecast, features, full_steps)


def official_differences(
    order: int, warmup: int, features: Array, anchors: Sequence[int], tau: Sequence[float]
) -> list[Array]:
    """The published TaylorSeer code: factors updated at every full step from the factors before."""
    factors: list[Array] = []
    for i, a in enumerate(anchors):
        updated = [features[a]]
        for m in range(order):
            if m >= len(factors) or a < warmup - 1:
                break
            updated.append((updated[m] - factors[m]) / (tau[a] - tau[anchors[i - 1]]))
        factors = updated
    return factors


def newton(order: int, features: Array, full_steps: Sequence[int], tau: Sequence[float]) -> Array:
    """Newton's form of the interpolation polynomial through the last order + 1 anchors."""

    def forecast(anchors: list[int], k: int) -> Array:
        nodes = anchors[::-1][: order + 1]
        total, product = np.zeros_like(features[0]), 1.0
        for i, node in enumerate(nodes):
            chosen = nodes[: i + 1]
            total += product * divided_difference(
                [features[n] for n in chosen], [tau[n] for n in chosen]
            )
            product *= tau[k] - tau[node]
        return total

    return from_anchors(forecast, features, full_steps)


def adams_bashforth(
    order: int, features: Array, full_steps: Sequence[int], tau: Sequence[float]
) -> Array:
    """Each step extrapolates through the last `order` values used, the first `order` computed."""
    used = np.empty_like(features)
    for k in range(len(features)):
        if k in full_steps:
            used[k] = features[k]
            continue
        assert set(range(order)) <= set(full_steps)
        last = range(k - order, k)
        product = 1.0
        total = np.zeros_like(features[0])
        for i in range(order):
            nodes = last[::-1][: i + 1]
            total += product * divided_difference([used[n] for n in nodes], [tau[n] for n in nodes])
            product *= tau[k] - tau[nodes[-1]]
        used[k] = total
    return used


def goc(
    eta: float,
    inflection: set[int] | None,
    features: Array,
    full_steps: Sequence[int],
    tau: Sequence[float],
) -> Array:
    """Reuse plus the propagated jump."""
    used = np.empty_like(features)
    correction = np.zeros_like(features[0])
    for k in range(len(features)):
        if k in full_steps:
            used[k] = features[k]
            if k:
                correction = (used[k] - used[k - 1]) / (tau[k] - tau[k - 1])
        else:
            applies = inflection is None or k in inflection
            correction = eta * correction if applies else np.zeros_like(correction)
            used[k] = used[k - 1] + (tau[k] - tau[k - 1]) * correction
    return used


def damped_trend(
    phi: float, features: Array, full_steps: Sequence[int], tau: Sequence[float]
) -> Array:
    used = np.empty_like(features)
    before, trend = None, np.zeros_like(features[0])
    for k in range(len(features)):
        if k in full_steps:
            used[k] = features[k]
            if before is not None:
                trend = (features[k] - features[before]) / (tau[k] - tau[before])
            before = k
        else:
            trend = phi * trend
            used[k] = used[k - 1] + (tau[k] - tau[k - 1]) * trend
    return used
