"""How a feature moves over the steps, and what forecasts miss: from its Gram matrix alone.

A forecast is a combination of computed features, so every norm here is a quadratic form in the Gram
matrix `G[i, j] = <F_i, F_j>` over the S steps. Definitions: docs/analysis.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from foca_dit.schemes import Scheme, run_reference

Array = NDArray[np.float64]


def used_values(
    scheme: Scheme, full_steps: Sequence[int], tau: Sequence[float], steps: int | None = None
) -> Array:
    """The values a cache would use, as combinations of the computed features.

    Args:
        scheme: the forecaster.
        full_steps: the steps at which the feature is computed, from step 0.
        tau: the time of every step.
        steps: so many steps of `tau`; None: all.

    Returns:
        float64 [S, S]: row k has the coefficients of the value used at step k.
    """
    count = len(tau) if steps is None else steps
    identity = torch.eye(count, dtype=torch.float64)
    used: Array = run_reference(scheme, identity, full_steps, tau[:count]).numpy()
    return used


def norms(gram: Array, combinations: Array) -> Array:
    """`|| sum_k c_k F_k ||` for every row of coefficients c."""
    n = combinations.shape[1]
    squared = np.einsum("ix,xy,iy->i", combinations, gram[:n, :n], combinations)
    rooted: Array = np.sqrt(np.maximum(squared, 0.0))
    return rooted


def relative_errors(gram: Array, used: Array) -> Array:
    """`||used_k - F_k|| / ||F_k||` at every step; 0 at full steps."""
    n = len(used)
    errors: Array = norms(gram, used - np.eye(n)) / np.sqrt(np.diag(gram)[:n])
    return errors


def local_truncation_errors(gram: Array, scheme: Scheme, tau: Sequence[float]) -> Array:
    """The relative error of forecasting one step from a history of computed features only.

    Returns:
        float64 [S]: entry k is of the forecast of step k from all steps before it; the first is
        NaN, for nothing is before it.
    """
    steps = len(tau)
    errors = np.full(steps, np.nan)
    for k in range(1, steps):
        used = used_values(scheme, range(k), tau, k + 1)
        errors[k] = relative_errors(gram, used)[k]
    return errors


def stiffness(gram: Array, tau: Sequence[float]) -> tuple[Array, Array]:
    """Lipschitz estimate `L_k = ||F'_{k+1} - F'_k|| / ||F_{k+1} - F_k||` and stiffness `|h_k| L_k`.

    F' is the forward difference over the step in tau.

    Returns:
        Two float64 [S]; the last two entries are NaN.
    """
    steps = len(tau)
    h = np.diff(np.asarray(tau, dtype=np.float64))
    slopes = (np.eye(steps)[1:] - np.eye(steps)[:-1]) / h[:, None]
    lipschitz = np.full(steps, np.nan)
    if steps > 2:
        turn, move = norms(gram, slopes[1:] - slopes[:-1]), norms(gram, slopes * h[:, None])
        with np.errstate(divide="ignore", invalid="ignore"):
            lipschitz[:-2] = np.where(move[:-1] > 0, turn / move[:-1], np.nan)
    index = lipschitz.copy()
    index[:-1] *= np.abs(h)
    return lipschitz, index


def horizon_errors(
    gram: Array,
    scheme: Scheme,
    tau: Sequence[float],
    start: int,
    horizon: int,
    interval: int = 1,
) -> Array:
    """Relative errors of 1, 2, .. steps forecast after computing up to a step.

    Args:
        gram: [S, S].
        scheme: the forecaster.
        tau: the times.
        start: the last computed step.
        horizon: how far to forecast, cut at the end of the run.
        interval: the computed steps before `start` are so many apart (1: every step, as in the
            paper's figure 8b).

    Returns:
        float64 [<= horizon].
    """
    last = min(start + horizon, len(tau) - 1)
    full = sorted({0, *range(start, -1, -interval)})
    used = used_values(scheme, full, tau, last + 1)
    errors: Array = relative_errors(gram, used)[start + 1 :]
    return errors


def growth_exponent(errors: Sequence[float] | Array) -> float:
    """The power p of `error ~ j^p` over the horizon j = 1, 2, ..; NaN if it cannot be told."""
    values = np.asarray(errors, dtype=np.float64)
    usable = np.isfinite(values) & (values > 0)
    if usable.sum() < 2:
        return float("nan")
    j = np.arange(1, len(values) + 1)[usable]
    return float(np.polyfit(np.log(j), np.log(values[usable]), 1)[0])


def principal_plane(gram: Array, paths: Sequence[Array]) -> tuple[list[Array], Array]:
    """Paths in the plane of the two directions in which the feature moves most.

    Args:
        gram: [S, S] of one sample.
        paths: rows of coefficients [n, S], as of `used_values`; the identity is the path itself.

    Returns:
        The paths' coordinates, [n, 2] each, and the shares of the variance along the two.
    """
    steps = len(gram)
    centre = np.full((steps, steps), 1.0 / steps)
    spread = np.eye(steps) - centre
    values, vectors = np.linalg.eigh(spread @ gram @ spread)
    top, directions = values[::-1][:2], vectors[:, ::-1][:, :2]
    # A direction's sign is arbitrary: the path is to start on the left and below.
    directions = directions * np.where(directions[0] > 0, -1.0, 1.0)
    scale = np.sqrt(np.maximum(top, 1e-300))
    mean = np.full(steps, 1.0 / steps)
    coordinates = [(path - mean) @ gram @ spread @ directions / scale for path in paths]
    return coordinates, top / max(float(values.clip(0).sum()), 1e-300)


def channel_index(features: torch.Tensor, tau: Sequence[float]) -> Array:
    """How differently fast a feature's channels move: Q95 / Q05 of `|lambda_d|` over channels.

    `lambda_d = sum dF' dF / sum dF^2`, summed over all dimensions but the last, with dF' the change
    of the forward difference from one step to the next.

    Args:
        features: [S, .., D].
        tau: S times.

    Returns:
        float64 [S]; the last two entries are NaN.
    """
    steps = len(tau)
    index = np.full(steps, np.nan)
    h = np.diff(np.asarray(tau, dtype=np.float64))
    for k in range(steps - 2):
        before = (features[k + 1] - features[k]).double().flatten(0, -2)
        after = (features[k + 2] - features[k + 1]).double().flatten(0, -2)
        turn = after / h[k + 1] - before / h[k]
        speed = ((turn * before).sum(0) / before.square().sum(0).clamp_min(1e-300)).abs()
        low, high = np.quantile(speed.numpy(), [0.05, 0.95])
        index[k] = high / low if low > 0 else np.nan
    return index
