"""Rows of the caches in `blocks`: what they calibrate, and how a budget becomes a threshold.

Thresholds are chosen on a few other seeds so that the full steps come as close to the budget as
they can without passing it; what then really ran is counted like everything else.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foca_dit.analysis.metrics import psnr
from foca_dit.evaluation.blocks import (
    DBCache,
    DeltaDiT,
    MagCache,
    Modulated,
    Rule,
    TeaCache,
    relative_l1,
    smallest_max_skip,
    with_rule,
)
from foca_dit.evaluation.rival import Rival, best_count, threshold_for
from foca_dit.evaluation.setting import Outcome, Setting

POLYNOMIAL_DEGREE = 4
"""Of TeaCache's rescaling, at most; the degree of all polynomials it publishes."""

MAG_RETENTION = 0.1
MAG_MAX_SKIP = 5
"""MagCache's published values for FLUX."""

SEARCH = 4.0
CHECKS = 6
"""How far around a threshold its correction looks, and how many generations that takes."""


class _Watch(Rule):
    """Runs everything and keeps what rules look at."""

    def __init__(self) -> None:
        self.modulated: list[torch.Tensor] = []
        self.fronts: list[torch.Tensor] = []

    def span(self, step: int, blocks: int) -> tuple[int, int]:
        return 1, blocks

    def spans(self, blocks: int) -> list[tuple[int, int]]:
        return [(0, blocks), (1, blocks)]

    def first(self, modulated: Modulated) -> None:
        self.modulated.append(modulated())

    def skips(self, step: int, front: torch.Tensor, modulated: Modulated) -> bool:
        self.modulated.append(modulated())
        return False

    def ran(self, front: torch.Tensor) -> None:
        self.fronts.append(front)


@dataclass(frozen=True, eq=False)
class Trace:
    """One full generation, as rules see it; lists over steps.

    Attributes:
        input_changes: relative L1 change of the modulated input from the step before (from step 1).
        output_changes: the same of the model's prediction.
        ratios: mean over tokens of the stack residual's norm by that of the step before; 1 first.
        fronts: [B, S, D], the change made by the first block.
        residuals: [B, S, D], the change made by all blocks.
        inputs: [B, C, H, W], what the model was called with.
    """

    input_changes: list[float]
    output_changes: list[float]
    ratios: list[float]
    fronts: list[torch.Tensor]
    residuals: list[torch.Tensor]
    inputs: list[torch.Tensor]


def trace(setting: Setting) -> Trace:
    """Records a full generation of the calibration seeds; once per setting."""
    made: Trace = setting.remember("trace", lambda: _trace(setting.calibration()))
    return made


def _trace(setting: Setting) -> Trace:
    rule = _Watch()
    model, cache = with_rule(setting, rule)
    residuals: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        residuals.append(cache.changes[0, len(cache.blocks)])
        inputs.append(args[0])
        outputs.append(output.sample)

    handle = model.register_forward_hook(keep)
    try:
        setting.draw(model, begin=cache.begin)
    finally:
        handle.remove()

    def changes(values: list[torch.Tensor]) -> list[float]:
        return [relative_l1(new, old) for old, new in itertools.pairwise(values)]

    norms = [residual.norm(dim=-1) for residual in residuals]
    ratios = [float((new / (old + 1e-8)).mean()) for old, new in itertools.pairwise(norms)]
    return Trace(
        changes(rule.modulated), changes(outputs), [1.0, *ratios], rule.fronts, residuals, inputs
    )


def under_rule(setting: Setting, rule: Rule, **details: Any) -> Outcome:
    """A generation under a rule."""
    model, cache = with_rule(setting, rule)
    drawn = setting.draw(model, begin=cache.begin, **details)
    taken = [step for step in range(setting.steps) if step not in cache.skipped]
    return dataclasses.replace(
        drawn, details={**drawn.details, "taken": taken}, nbytes=cache.nbytes
    )


def teacache(setting: Setting, budget: int) -> Outcome:
    """TeaCache with the rescaling that serves it best on the calibration seeds.

    Its authors fit a polynomial of degree 4 to many prompts per model. Here such a fit may bend the
    wrong way where cached steps lead, so no rescaling and every degree up to 4 are tried.
    """
    seen, other = trace(setting), setting.calibration()
    full = setting.remember("calibration", lambda: other.draw().images)
    fits = [[1.0, 0.0]] + [
        [float(value) for value in np.polyfit(seen.input_changes, seen.output_changes, degree)]
        for degree in range(1, POLYNOMIAL_DEGREE + 1)
    ]

    def threshold_of(coefficients: list[float]) -> float:
        def count(threshold: float) -> float:
            rule = TeaCache(threshold, coefficients, setting.steps)
            rule.begin()
            return 2 + sum(not rule.adds(change) for change in seen.input_changes[:-1])

        return threshold_for(count, budget)

    def tried(coefficients: list[float]) -> tuple[bool, float]:
        rule = TeaCache(threshold_of(coefficients), coefficients, setting.steps)
        outcome = under_rule(other, rule)
        return outcome.cost.full_steps <= budget + 1, psnr(outcome.images, full)

    coefficients = max(fits, key=tried)
    threshold = _checked(
        setting,
        lambda value: TeaCache(value, coefficients, setting.steps),
        threshold_of(coefficients),
        budget,
    )
    rule = TeaCache(threshold, coefficients, setting.steps)
    return under_rule(setting, rule, threshold=threshold, coefficients=coefficients)


def _checked(
    setting: Setting, rule: Callable[[float], Rule], threshold: float, budget: int
) -> float:
    """The threshold, corrected on generations that really skip where a full one misled.

    Rules see what skipped steps make of the stream, so the full generation that the threshold was
    chosen on is only near the truth.
    """
    other = setting.calibration()

    def count(threshold: float) -> float:
        return under_rule(other, rule(threshold)).cost.full_steps

    if budget - 1 < count(threshold) <= budget:
        return threshold
    return threshold_for(count, budget, threshold / SEARCH, threshold * SEARCH, CHECKS)


def magcache(setting: Setting, budget: int) -> Outcome:
    """MagCache with the ratios of this model."""
    rule = mag_rule(setting, budget)
    detail = {
        "threshold": rule.threshold,
        "max_skip": rule.max_skip,
        "retention": rule.retention,
    }
    return under_rule(setting, rule, **detail)


def mag_rule(setting: Setting, budget: int) -> MagCache:
    """MagCache for a budget: the ratios of this model, and the threshold chosen on them."""
    ratios = trace(setting).ratios
    retention = int(MAG_RETENTION * setting.steps + 0.5)
    max_skip = smallest_max_skip(ratios, retention, budget, MAG_MAX_SKIP)

    def rule(threshold: float) -> MagCache:
        return MagCache(threshold, ratios, max_skip, retention)

    return rule(threshold_for(lambda threshold: rule(threshold).full_steps(), budget))


def front_threshold(setting: Setting, budget: int, front: int = 1) -> float:
    """DBCache's threshold for a budget, a skipped step costing its front blocks."""
    return float(
        setting.remember(f"front {front} {budget}", lambda: _front(setting, budget, front))
    )


def _front(setting: Setting, budget: int, front: int) -> float:
    fronts = trace(setting).fronts
    blocks, distances = setting.blocks, _distances(setting, fronts)

    def count(threshold: float) -> float:
        latest, full = 0, 1
        for step in range(1, setting.steps):
            if distances[latest][step] > threshold:
                latest, full = step, full + 1
        return full + (setting.steps - full) * front / len(blocks)

    return _checked(
        setting, lambda threshold: DBCache(threshold, front), threshold_for(count, budget), budget
    )


def _distances(setting: Setting, fronts: list[torch.Tensor]) -> list[list[float]]:
    def make() -> list[list[float]]:
        return [[relative_l1(new, old) for new in fronts] for old in fronts]

    table: list[list[float]] = setting.remember("front distances", make)
    return table


def dbcache(setting: Setting, budget: int) -> Outcome:
    """DBCache F1B0."""
    threshold = front_threshold(setting, budget)
    return under_rule(setting, DBCache(threshold), threshold=threshold, front=1)


def delta_dit(setting: Setting, budget: int) -> Outcome:
    """Delta-DiT: interval and blocks closest to the budget, boundary at half the steps."""
    blocks, steps = len(setting.blocks), setting.steps
    choices = [
        (rule.full_steps(steps, blocks), rule)
        for interval in range(2, steps + 1)
        for cached in range(1, blocks)
        for rule in [DeltaDiT(interval, cached, steps // 2)]
    ]
    rule: Any = best_count(choices, budget)
    detail = {"interval": rule.interval, "cached_blocks": rule.cached, "boundary": rule.boundary}
    return under_rule(setting, rule, **detail)


ONLINE = (
    Rival("TeaCache", "published", str(TeaCache.__doc__).split("\n\n")[1], teacache),
    Rival("MagCache", "published", str(MagCache.__doc__).split("\n\n")[1], magcache),
    Rival(
        "DBCache F1B0",
        "published",
        "cache-dit's DBCache with one block in front and none behind, which is First Block Cache "
        "(ParaAttention; diffusers' FirstBlockCacheConfig)",
        dbcache,
    ),
    Rival("Delta-DiT", "published", str(DeltaDiT.__doc__).split("\n\n")[1], delta_dit),
)
