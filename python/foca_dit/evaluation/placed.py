"""Caches whose full steps are placed by calibration: LeMiCa and MeanCache.

Both search a graph of cache segments; they differ in what a segment costs and what is reused.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from foca_dit.analysis.sampling import conditions, predict
from foca_dit.evaluation import own
from foca_dit.evaluation.blocks import Modulated, Rule, with_rule
from foca_dit.evaluation.online import trace
from foca_dit.evaluation.paths import lexicographic_minimax, shortest
from foca_dit.evaluation.rival import Rival
from foca_dit.evaluation.setting import Outcome, Setting
from foca_dit.schedules import FullSteps

LEMICA_IMAGES = 1
LEMICA_GAP = 8
"""LeMiCa's longest segment. Its paper sets one too, to keep the graph small."""
LEMICA_CHUNK = 64

MEAN_GAP = 16
MEAN_SPANS = (1, 2, 3, 4, 5, 6)
"""MeanCache's spans K; those of its public code."""
MEAN_POWER = 2.0
"""Of the peak suppression. The authors' public code ships finished tables and no value; 2 is that
of the port facok/comfyui-meancache-z."""


# LeMiCa -----------------------------------------------------------------------------------------


class _Given(Rule):
    """Skips every step, with changes given from outside."""

    def skips(self, step: int, front: torch.Tensor, modulated: Modulated) -> bool:
        return True


def segment_errors(setting: Setting, gap: int, images: int) -> dict[tuple[int, int], float]:
    """What each cache segment does to the finished sample: LeMiCa's global outcome-aware error.

    A segment (i, j) runs step i in full, reuses its stack residual until j and is in full before
    and after. The error is the mean absolute difference of the finished sample. States are taken
    from one full generation, and all segments that are in their full part go through the model in
    one batch.

    Args:
        gap: the longest segment.
        images: how many of the calibration samples to average over.
    """
    seen, sigmas, steps = trace(setting), setting.sigmas, setting.steps
    guided = setting.guidance_scale > 1
    batch = setting.calibration().images
    rows = torch.arange(images)
    if guided:
        rows = torch.cat([rows, batch + rows])
    states = [x[:images] for x in seen.inputs]
    labels = setting.calibration().labels[:images]
    skipping, cache = with_rule(setting, _Given())
    span = (0, len(cache.blocks))

    def follow(model: torch.nn.Module, x: torch.Tensor, step: int) -> torch.Tensor:
        """One Euler step of the samples x [n, C, H, W], n a multiple of `images`."""
        many = labels.repeat(len(x) // len(labels))
        velocity = _velocity(setting, model, x, step, many)
        return x + (sigmas[step + 1] - sigmas[step]) * velocity

    segments: dict[int, list[tuple[tuple[int, int], torch.Tensor]]] = {}
    errors: dict[tuple[int, int], float] = {}
    with torch.inference_mode():
        for start in range(steps):
            x = follow(setting.model, states[start], start)
            if start + 1 == steps:
                final = x
            errors[start, start + 1] = 0.0
            for step in range(start + 1, min(start + gap, steps)):
                cache.begin()
                cache.changes = {span: seen.residuals[start][rows]}
                x = follow(skipping, x, step)
                segments.setdefault(step + 1, []).append(((start, step + 1), x))
        flying: list[tuple[tuple[int, int], torch.Tensor]] = []
        for step in range(steps):
            flying += segments.get(step, [])
            if flying:
                together = torch.cat([x for _, x in flying])
                chunks = [
                    follow(setting.model, chunk, step)
                    for chunk in together.split(max(LEMICA_CHUNK // images, 1) * images)
                ]
                states_now = torch.cat(chunks).split(images)
                flying = [(key, x) for (key, _), x in zip(flying, states_now, strict=True)]
    for key, x in flying + segments.get(steps, []):
        errors[key] = float((x - final).abs().mean())
    return errors


def _velocity(
    setting: Setting, model: torch.nn.Module, x: torch.Tensor, step: int, labels: torch.Tensor
) -> torch.Tensor:
    """The (guided) prediction of a model at one step."""
    scale = setting.guidance_scale
    told = conditions(model, labels, scale > 1, setting.tokens)
    return predict(model, x, torch.tensor(1000 * setting.sigmas[step]), told, scale)


def lemica(setting: Setting, budget: int) -> Outcome:
    """Reuse of the stack's residual on LeMiCa's placed steps."""

    def make() -> dict[tuple[int, int], float]:
        return segment_errors(setting, LEMICA_GAP, LEMICA_IMAGES)

    steps = lexicographic_minimax(setting.remember("segments", make), setting.steps, budget)
    return own.placed(setting, FullSteps(steps), "stack", taken=steps, max_gap=LEMICA_GAP)


# MeanCache --------------------------------------------------------------------------------------


def mean_velocity(
    used: Sequence[torch.Tensor], sigmas: Sequence[float], step: int, span: int
) -> torch.Tensor:
    """The velocity that MeanCache uses at a skipped step.

    With K = `span` (as many as there are), i = step - K and v the velocities used so far, it takes
    the average velocity u of the steps i..step-1, from it the total derivative
    `jvp = (v_i - u) / (sigma_step - sigma_i)`, and returns
    `v_{step-1} - jvp (sigma_{step+1} - sigma_step)`. K = 1 is reuse of the last velocity. The
    public code takes u from the samples; under Euler these are sums of the velocities, as here.

    Args:
        used: v_0 .. v_{step-1}, computed or not.
        sigmas: noise levels, S + 1 of them.
    """
    first = max(step - span, 0)
    length = sigmas[step] - sigmas[first]
    total = torch.zeros_like(used[-1])
    for index in range(first, step):
        total = total + used[index] * (sigmas[index + 1] - sigmas[index])
    jvp = (used[first] - total / length) / length
    return used[step - 1] - jvp * (sigmas[step + 1] - sigmas[step])


class MeanCache(torch.nn.Module):
    """Stands in for a model: computes the full steps and returns mean velocities at the others.

    Args:
        model: predicts the velocity of flow matching.
        spans: K of every skipped step; steps that it does not name are computed.
        sigmas: noise levels of the sampler, S + 1 of them.
    """

    def __init__(
        self, model: torch.nn.Module, spans: Mapping[int, int], sigmas: Sequence[float]
    ) -> None:
        super().__init__()
        self.model, self.spans, self.sigmas = model, dict(spans), tuple(sigmas)
        self.config = model.config
        self.begin()

    def begin(self) -> None:
        """Starts a generation."""
        self.used: list[torch.Tensor] = []

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> Any:
        step = len(self.used)
        if step in self.spans:
            output = mean_velocity(self.used, self.sigmas, step, self.spans[step])
            self.used.append(output)
            return _Output(output)
        result: Any = self.model(hidden_states, **arguments)
        self.used.append(result.sample)
        return result


@dataclasses.dataclass
class _Output:
    sample: torch.Tensor


def transition_errors(
    velocities: Sequence[torch.Tensor], sigmas: Sequence[float], gap: int
) -> dict[tuple[int, int], tuple[float, int]]:
    """The error of the average velocity over every segment, and the span K that makes it smallest.

    On the velocities of a full generation: the mean absolute difference between the average of what
    MeanCache would use over the segment (i, j) and the true average.
    """
    table = {}
    steps = len(velocities)
    for start in range(steps):
        best: dict[int, tuple[float, int]] = {start + 1: (0.0, 0)}
        for span in MEAN_SPANS:
            for stop, error in _replayed(velocities, sigmas, start, min(start + gap, steps), span):
                best[stop] = min(best.get(stop, (float("inf"), 0)), (error, span))
        table.update({(start, stop): value for stop, value in best.items()})
    return table


def _replayed(
    velocities: Sequence[torch.Tensor], sigmas: Sequence[float], start: int, last: int, span: int
) -> Iterator[tuple[int, float]]:
    used = list(velocities[: start + 1])
    missed = torch.zeros_like(used[0])
    for step in range(start + 1, last):
        used.append(mean_velocity(used, sigmas, step, span))
        missed = missed + (used[step] - velocities[step]) * (sigmas[step + 1] - sigmas[step])
        yield step + 1, float((missed / (sigmas[step + 1] - sigmas[start])).abs().mean())


def meancache(setting: Setting, budget: int) -> Outcome:
    """MeanCache, steps and spans placed by its shortest path."""

    def make() -> dict[tuple[int, int], tuple[float, int]]:
        inputs, sigmas = trace(setting).inputs, setting.sigmas
        inputs = [x[: setting.calibration().images] for x in inputs]
        # Euler's own velocities, guidance included; the last step is not needed by any estimate.
        moves = [
            (new - old) / (sigmas[k + 1] - sigmas[k])
            for k, (old, new) in enumerate(itertools.pairwise(inputs))
        ]
        final = setting.remember("trace end", lambda: _last_velocity(setting, inputs[-1]))
        return transition_errors([*moves, final], sigmas, MEAN_GAP)

    table = setting.remember("transitions", make)
    costs = {edge: error for edge, (error, _) in table.items()}
    steps = shortest(costs, setting.steps, budget, MEAN_POWER)
    spans = {
        step: table[i, j][1]
        for i, j in zip(steps, [*steps[1:], setting.steps], strict=True)
        for step in range(i + 1, j)
    }
    model = MeanCache(setting.model, spans, setting.sigmas)
    drawn = setting.draw(model, begin=model.begin, taken=steps, spans=spans)
    # The window that the largest span looks back on.
    window = model.used[-max(MEAN_SPANS) :]
    return dataclasses.replace(drawn, nbytes=sum(value.nbytes for value in window))


def _last_velocity(setting: Setting, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        labels = setting.calibration().labels
        return _velocity(setting, setting.model, x, setting.steps - 1, labels)


PLACED = (
    Rival(
        "LeMiCa",
        "placed",
        "Gao et al., LeMiCa: Lexicographic Minimax Path Caching, arXiv:2511.00090, eq. 4 and its "
        "path optimisation; the stack's residual is reused, as in TeaCache, whose code its public "
        "code builds on",
        lemica,
    ),
    Rival(
        "MeanCache",
        "placed",
        "Gao et al., MeanCache: From Instantaneous to Average Velocity, arXiv:2601.19961; the step "
        "as in its public code (github.com/UnicomAI/MeanCache), the placement from the paper's "
        "objective, its edge error our reading",
        meancache,
    ),
)
