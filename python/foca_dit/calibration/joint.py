"""All weights of a plan at once: forecasts whose errors cancel in the image.

The errors of neighbouring steps point the same way, and the sampler adds them up. A weight fitted
to its own step alone leaves that sum alone: on a uniform interval such plans lost to FoCa, whose
feedback happens to work against it (docs/tune.md). So the weights of all skipped steps are fitted
together, to the least

    sum_ij K_ij c_i c_j <err_i, err_j>,     K_ij = (share of the steps still to come at max(i, j))
                                                   + own * delta_ij

where err_i is the forecast's error and c_i what it makes of the image. The first part of K is the
mean over all steps of the squared error accumulated by then, the second keeps each single forecast
honest. It is a ridge least squares problem in the Gram matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foca_dit.calibration.fit import NOISE
from foca_dit.calibration.grams import Array

OWN_ERROR = 0.1
MAX_ROUNDS = 10


def coherence(steps: int, own: float = OWN_ERROR) -> Array:
    """The matrix K [S, S] above; `own` weighs a step's own error beside the accumulated one."""
    index = np.arange(steps)
    kernel: Array = (steps - np.maximum.outer(index, index)) / steps + own * np.eye(steps)
    return kernel


@dataclass(frozen=True, eq=False)
class JointFit:
    """Weights for all skipped steps of a placement.

    Attributes:
        weights: by skipped step, the weights of the anchors before it, newest first.
        cost: the minimised objective.
    """

    weights: dict[int, Array]
    cost: float


def fit_jointly(
    gram: Array,
    influence: Array,
    full_steps: Sequence[int],
    history: int,
    noise: float = NOISE,
    kernel: Array | None = None,
) -> JointFit:
    """The weights of all skipped steps that make the least of the objective above.

    Args:
        gram: float64 [S, S].
        influence: c, [S].
        full_steps: the placement, from step 0.
        history: anchors that a forecast may read.
        noise: relative error of an anchor, the ridge (`fit`).
        kernel: K [S, S]; None: `coherence(S)`. The identity fits every step by itself.
    """
    steps = len(gram)
    kernel = coherence(steps) if kernel is None else kernel
    full = sorted(full_steps)
    skipped = [step for step in range(steps) if step not in full]
    anchors = {i: [a for a in reversed(full) if a < i][:history] for i in skipped}
    # Each error is base + sum over older anchors of theta (F_older - F_newest), as combinations of
    # the features: columns over the S steps.
    base = np.zeros((steps, len(skipped)))
    columns, owner = [], []
    for n, i in enumerate(skipped):
        latest, *older = anchors[i]
        base[latest, n] += influence[i]
        base[i, n] -= influence[i]
        for step in older:
            column = np.zeros(steps)
            column[step], column[latest] = influence[i], -influence[i]
            columns.append(column)
            owner.append(n)
    own = kernel[np.ix_(skipped, skipped)]
    newest = [anchors[i][0] for i in skipped]
    ridge = noise**2 * influence[skipped] ** 2 * np.diag(own) * np.diag(gram)[newest]
    constant = float(np.sum(own * (base.T @ gram @ base)) + ridge.sum())
    theta = np.zeros(len(owner))
    if owner:
        basis = np.array(columns).T
        product = gram @ basis
        normal = (basis.T @ product) * own[np.ix_(owner, owner)]
        right = -np.einsum("pn,pn->p", product.T @ base, own[owner])
        _add_noise(normal, right, gram, influence, own, anchors, noise)
        theta = np.linalg.lstsq(normal, right, rcond=1e-13)[0]
        constant += float(theta @ normal @ theta - 2 * theta @ right)
    weights, at = {}, 0
    for i in skipped:
        older_weights = theta[at : at + len(anchors[i]) - 1]
        at += len(older_weights)
        weights[i] = np.concatenate([[1 - older_weights.sum()], older_weights])
    return JointFit(weights, constant)


def _add_noise(
    normal: Array,
    right: Array,
    gram: Array,
    influence: Array,
    own: Array,
    anchors: dict[int, list[int]],
    noise: float,
) -> None:
    """The ridge of `foca_dit.calibration.fit`, per skipped step, into the normal equations."""
    at = 0
    for n, (i, (newest, *older)) in enumerate(anchors.items()):
        block = slice(at, at + len(older))
        at += len(older)
        scale = noise**2 * influence[i] ** 2 * own[n, n]
        normal[block, block] += scale * (np.diag(np.diag(gram)[older]) + gram[newest, newest])
        right[block] += scale * gram[newest, newest]


def refine(
    gram: Array,
    influence: Array,
    full_steps: Sequence[int],
    history: int,
    noise: float = NOISE,
    kept: int = 2,
) -> tuple[int, ...]:
    """Moves single full steps while that lowers the joint objective.

    Dynamic programming needs a cost that adds up over intervals; the joint one does not, so its
    placement is only the start here.

    Args:
        gram, influence, history, noise: as in `fit_jointly`.
        full_steps: where to start.
        kept: so many first full steps stay where they are.
    """
    full = sorted(full_steps)
    best = fit_jointly(gram, influence, full, history, noise).cost
    for _ in range(MAX_ROUNDS):
        improved = False
        for k in range(kept, len(full)):
            for move in (-4, -2, -1, 1, 2, 4):
                step = full[k] + move
                if step in full or not full[kept - 1] < step < len(gram):
                    continue
                trial = sorted([*full[:k], step, *full[k + 1 :]])
                cost = fit_jointly(gram, influence, trial, history, noise).cost
                if cost < best * (1 - 1e-3):
                    best, full, improved = cost, trial, True
        if not improved:
            break
    return tuple(full)
