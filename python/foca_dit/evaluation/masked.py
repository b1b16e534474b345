"""Caches that are a mask over steps and modules, with reuse: SmoothCache and an L2C-style mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from foca_dit.calibration.grams import record_grams
from foca_dit.calibration.masks import layer_mask
from foca_dit.evaluation import own
from foca_dit.evaluation.rival import Rival, best_count, threshold_for
from foca_dit.evaluation.setting import Absent, Outcome, Setting
from foca_dit.schedules import StepMask

LOOKAHEAD = 3
"""SmoothCache's default."""

KINDS = ("attn1", "ff")
"""Components of a DiT block in the order of this project's features."""

Errors = dict[str, NDArray[np.float64]]


def smooth_schedule(errors: NDArray[np.float64], threshold: float) -> list[bool]:
    """SmoothCache's scan: which steps compute a component.

    From a computed step, as many steps are skipped as the longest lag allows whose error is at most
    the threshold; the first and the last step are computed.

    Args:
        errors: [lags, S]; `errors[k, i]` is the relative L1 change from step i to i + k + 1, NaN
            beyond the end.
        threshold: the largest error.
    """
    lags, steps = errors.shape
    computed = [True] * steps
    step = 0
    while step < steps:
        allowed = [k + 1 for k in range(lags) if errors[k, step] <= threshold]
        skip = max(allowed, default=0)
        for other in range(step + 1, min(step + skip + 1, steps)):
            computed[other] = False
        step += skip + 1
    computed[-1] = True
    return computed


def component_errors(setting: Setting, lags: int) -> Errors:
    """Relative L1 changes over 1 .. lags steps, by component, the mean over blocks."""
    kept: dict[str, list[list[torch.Tensor]]] = defaultdict(list)
    handles = []
    for block in setting.blocks:
        for kind in KINDS:
            outputs: list[torch.Tensor] = []
            kept[kind].append(outputs)
            module = getattr(block, kind)
            handles.append(
                module.register_forward_hook(
                    lambda _, __, output, outputs=outputs: outputs.append(output)
                )
            )
    try:
        setting.calibration().draw()
    finally:
        for handle in handles:
            handle.remove()
    return {
        kind: np.mean([_changes(of_block, lags) for of_block in of_kind], axis=0)
        for kind, of_kind in kept.items()
    }


def _changes(outputs: Sequence[torch.Tensor], lags: int) -> NDArray[np.float64]:
    table = np.full((lags, len(outputs)), np.nan)
    sizes = [float(value.abs().sum()) for value in outputs]
    for lag in range(1, lags + 1):
        for step in range(len(outputs) - lag):
            change = float((outputs[step + lag] - outputs[step]).abs().sum())
            table[lag - 1, step] = change / max(sizes[step + lag], 1e-300)
    return table


def smoothcache(setting: Setting, budget: int) -> Outcome:
    """SmoothCache; its lookahead is the default, or the smallest that reaches the budget."""
    most = setting.steps - 1
    errors: Errors = setting.remember("components", lambda: component_errors(setting, most))

    def masks(threshold: float, lags: int) -> dict[str, list[bool]]:
        return {kind: smooth_schedule(table[:lags], threshold) for kind, table in errors.items()}

    for lags in range(LOOKAHEAD, most + 1):

        def count(threshold: float, lags: int = lags) -> float:
            return float(np.mean([sum(mask) for mask in masks(threshold, lags).values()]))

        try:
            threshold = threshold_for(count, budget)
        except Absent:
            continue
        chosen = masks(threshold, lags)
        table = np.array([chosen[kind] for _ in setting.blocks for kind in KINDS]).T
        taken = {kind: [s for s, full in enumerate(mask) if full] for kind, mask in chosen.items()}
        return own.placed(
            setting, StepMask(table), "module", threshold=threshold, lookahead=lags, taken=taken
        )
    raise Absent(f"no lookahead reaches {budget} full steps")


def l2c(setting: Setting, budget: int) -> Outcome:
    """An L2C-style mask: every second step full, a share of the modules cached at the others."""

    def make() -> NDArray[np.float64]:
        grams = record_grams(setting.model, "module", [setting.calibration().draw])
        return grams.grams

    features = len(setting.blocks) * len(KINDS)  # Absent where several modules share one feature
    if budget < (setting.steps + 1) // 2:
        raise Absent("computes every second step in full, at least half of them")
    grams = setting.remember("grams", make)
    choices = [
        (mask.mean() * setting.steps, (share, mask))
        for share in [k / features for k in range(features + 1)]
        for mask in [layer_mask(grams, share)]
    ]
    share, mask = best_count(choices, budget)
    return own.placed(setting, StepMask(mask), "module", share=share)


MASKED = (
    Rival(
        "SmoothCache",
        "published",
        "Liu et al., SmoothCache: A Universal Inference Acceleration Technique for Diffusion "
        "Transformers, arXiv:2411.10510; errors and scan as in its public code "
        "(github.com/Roblox/SmoothCache)",
        smoothcache,
    ),
    Rival(
        "L2C-style mask",
        "published",
        "in the manner of Ma et al., Learning-to-Cache, arXiv:2406.01733: half of all steps full, "
        "at the others a share of the modules is reused; the mask is calibrated, not trained "
        "(foca_dit/calibration/masks.py)",
        l2c,
    ),
)
