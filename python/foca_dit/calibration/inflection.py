"""GOC's inflection set, from the mean features of calibration samples.

With `A_k` the mean feature at step k, `c_k` is the median over blocks of the cosine between the
last two changes, `cos(A_{k-1} - A_{k-2}, A_k - A_{k-1})`. Where it is positive the trajectory keeps
its direction and propagating the last jump helps: those steps are the set S. Our reading of
arXiv:2503.05156 (docs/method.md, section 7).
"""

from __future__ import annotations

import statistics

import torch

from foca_dit.calibration.means import MeanFeatures


def direction_cosines(means: MeanFeatures) -> list[float]:
    """`c_k` for every step; the first two, which have no two changes before them, are 0."""
    flat = means.values.double().flatten(2)
    steps = flat.shape[1]
    change = flat[:, 1:] - flat[:, :-1]
    cosines = [0.0] * min(2, steps)
    for k in range(2, steps):
        of_features = torch.cosine_similarity(change[:, k - 2], change[:, k - 1], dim=1)
        cosines.append(statistics.median(of_features.tolist()))
    return cosines


def inflection_steps(means: MeanFeatures) -> tuple[int, ...]:
    """The set S: steps at which the propagated jump applies."""
    return tuple(k for k, cosine in enumerate(direction_cosines(means)) if cosine > 0)
