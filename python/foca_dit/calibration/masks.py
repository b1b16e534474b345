"""Which features to cache at which steps: a mask in the manner of Learning-to-Cache (L2C).

L2C trains a router for that; here the same kind of mask comes from the calibration's Gram matrices.
Every second step computes all features. At the steps between, a given share of the features is
cached, those whose relative change over one step is the smallest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foca_dit.calibration.grams import Array


def layer_mask(grams: Array, share: float) -> NDArray[np.bool_]:
    """A mask for `StepMask`: True where a feature is computed.

    Args:
        grams: float64 [L, S, S], of the L features over S steps.
        share: share of the features that is cached at the steps between full ones, 0 to 1.

    Returns:
        bool [S, L].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"layer_mask: argument 'share': expected 0 to 1, got {share}")
    features, steps, _ = grams.shape
    mask = np.ones((steps, features), dtype=bool)
    cached = round(share * features)
    diagonal = np.einsum("lss->ls", grams)
    for step in range(1, steps, 2):
        change = diagonal[:, step] + diagonal[:, step - 1] - 2 * grams[:, step, step - 1]
        order = np.argsort(change / np.maximum(diagonal[:, step], 1e-300), kind="stable")
        mask[step, order[:cached]] = False
    return mask
