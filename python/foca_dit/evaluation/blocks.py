"""Caches that decide at every step which blocks to run: TeaCache, MagCache, DBCache, Delta-DiT.

They reuse the summed change of a range of blocks, and say at the step itself, from what enters the
blocks, whether to. `BlockCache` does the one, a `Rule` the other. The cache proper of this project
decides at full steps only, so these rivals stand in the place of the model's blocks instead.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foca_dit.evaluation.setting import Absent, Setting

Span = tuple[int, int]


class Rule(ABC):
    """Decides. One object serves one generation after another; `begin` starts each of them."""

    def begin(self) -> None:  # noqa: B027
        """Forgets the generation before."""

    def span(self, step: int, blocks: int) -> Span:
        """The blocks [start, stop) that may be skipped at this step; the others always run."""
        return 0, blocks

    def spans(self, blocks: int) -> Sequence[Span]:
        """All ranges that `span` may give: their change is kept at every full step."""
        return [self.span(0, blocks)]

    @abstractmethod
    def skips(self, step: int, front: torch.Tensor, modulated: Modulated) -> bool:
        """Whether to reuse the change of the span.

        Args:
            step: index of the step, the first one excepted: it always runs.
            front: [B, S, D], the change made by the blocks in front of the span, or 0.
            modulated: gives, if asked, what enters the first block's attention.
        """

    def first(self, modulated: Modulated) -> None:  # noqa: B027
        """Sees the first step, which always runs."""

    def ran(self, front: torch.Tensor) -> None:  # noqa: B027
        """Told that the span is going to run."""


@dataclass
class Modulated:
    """What enters the first block's attention: the stream, normalised and modulated."""

    block: torch.nn.Module
    stream: torch.Tensor
    arguments: dict[str, Any]

    def __call__(self) -> torch.Tensor:
        norm: Any = self.block.norm1
        value: torch.Tensor = norm(
            self.stream,
            self.arguments["timestep"],
            self.arguments["class_labels"],
            hidden_dtype=self.stream.dtype,
        )[0]
        return value


class BlockCache(torch.nn.Module):
    """Stands in for all blocks of a DiT and reuses the change of a range of them."""

    def __init__(self, blocks: torch.nn.ModuleList, rule: Rule) -> None:
        super().__init__()
        self.blocks, self.rule = blocks, rule
        self.begin()

    def begin(self) -> None:
        """Starts a generation."""
        self.step = 0
        self.changes: dict[Span, torch.Tensor] = {}
        self.skipped: list[int] = []
        self.rule.begin()

    @property
    def norm1(self) -> torch.nn.Module:
        """DiT reads its conditioning off its first block."""
        first: Any = self.blocks[0]
        norm: torch.nn.Module = first.norm1
        return norm

    @property
    def nbytes(self) -> int:
        """Bytes of the kept changes."""
        return sum(change.nbytes for change in self.changes.values())

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        count = len(self.blocks)
        start, stop = span = self.rule.span(self.step, count)
        modulated = Modulated(self.blocks[0], hidden_states, arguments)
        stream = [hidden_states]  # before every block, and after the last
        self._run(stream, start, arguments)
        front = stream[start] - hidden_states
        if span not in self.changes:
            self.rule.first(modulated)
            skip = False
        else:
            skip = self.rule.skips(self.step, front, modulated)
        if skip:
            self.skipped.append(self.step)
            stream += [stream[start] + self.changes[span]] * (stop - start)
        else:
            self.rule.ran(front)
        self._run(stream, count, arguments)
        if not skip:
            spans = self.rule.spans(count)
            self.changes = {(i, j): stream[j] - stream[i] for i, j in spans}
        self.step += 1
        return stream[-1]

    def _run(self, stream: list[torch.Tensor], stop: int, arguments: dict[str, Any]) -> None:
        for index in range(len(stream) - 1, stop):
            stream.append(self.blocks[index](stream[index], **arguments))


def with_rule(setting: Setting, rule: Rule) -> tuple[torch.nn.Module, BlockCache]:
    """A model that shares all weights with the setting's and runs its blocks under a rule.

    Raises:
        Absent: it is no `DiTTransformer2DModel`.
    """
    cache = BlockCache(setting.blocks, rule)
    other: Any = copy.copy(setting.model)
    other._modules = dict(setting.model._modules)
    other._modules["transformer_blocks"] = torch.nn.ModuleList([cache])
    return other, cache


def relative_l1(value: torch.Tensor, before: torch.Tensor) -> float:
    """`mean |value - before| / mean |before|`, infinite if `before` is 0 and `value` is not."""
    change, size = float((value - before).abs().mean()), float(before.abs().mean())
    return change / size if size else math.inf * change if change else 0.0


class TeaCache(Rule):
    """Skips while the rescaled changes of the modulated input add up to less than a threshold.

    Liu et al., Timestep Embedding Tells: It's Time to Cache, arXiv:2411.19108; its public code:
    the first and the last step run, every step adds `poly(relative L1 change)` of the input of the
    first block's attention, and a step that runs starts the sum anew.

    Args:
        threshold: of the sum.
        coefficients: of the polynomial, highest power first.
        steps: of a generation.
    """

    def __init__(self, threshold: float, coefficients: Sequence[float], steps: int) -> None:
        self.threshold, self.steps = threshold, steps
        self.rescale = np.poly1d(coefficients)

    def begin(self) -> None:
        self.sum = 0.0
        self.before: torch.Tensor | None = None

    def first(self, modulated: Modulated) -> None:
        self.before = modulated()

    def skips(self, step: int, front: torch.Tensor, modulated: Modulated) -> bool:
        value = modulated()
        assert self.before is not None
        change, self.before = relative_l1(value, self.before), value
        if step == self.steps - 1:
            return False
        return self.adds(change)

    def adds(self, change: float) -> bool:
        """Adds the change of one step; whether it is skipped."""
        self.sum += float(self.rescale(change))
        if self.sum < self.threshold:
            return True
        self.sum = 0.0
        return False


class MagCache(Rule):
    """Skips while the known magnitude ratios of the residual say that it has hardly changed.

    Ma et al., MagCache: Fast Video Generation with Magnitude-Aware Cache, arXiv:2506.09045; the
    rule as in diffusers' `MagCacheConfig`: after the first `retention` steps, ratios multiply up to
    r, `|1 - r|` adds up, and the step is skipped while the sum is at most the threshold and fewer
    than `max_skip` have been skipped in a row.
    """

    def __init__(
        self, threshold: float, ratios: Sequence[float], max_skip: int, retention: int
    ) -> None:
        self.threshold, self.ratios = threshold, tuple(ratios)
        self.max_skip, self.retention = max_skip, retention

    def begin(self) -> None:
        self.ratio, self.error, self.count = 1.0, 0.0, 0

    def skips(self, step: int, front: torch.Tensor, modulated: Modulated) -> bool:
        return self.decides(step)

    def decides(self, step: int) -> bool:
        """The decision needs nothing but the step's number."""
        if step < self.retention:
            return False
        self.ratio *= self.ratios[step]
        self.count += 1
        self.error += abs(1 - self.ratio)
        if self.error <= self.threshold and self.count <= self.max_skip:
            return True
        self.ratio, self.error, self.count = 1.0, 0.0, 0
        return False

    def full_steps(self) -> int:
        """Of a generation."""
        self.begin()
        return sum(step == 0 or not self.decides(step) for step in range(len(self.ratios)))


class DBCache(Rule):
    """Skips all but the first blocks while these change the stream as at the last full step.

    cache-dit's DBCache with `Fn` blocks in front and none behind; with one block in front it is the
    First Block Cache of ParaAttention and diffusers: the relative L1 distance of the front's
    change from that of the last full step is compared with a threshold.
    """

    def __init__(self, threshold: float, front: int = 1) -> None:
        self.threshold, self.front = threshold, front

    def begin(self) -> None:
        self.latest: torch.Tensor | None = None

    def span(self, step: int, blocks: int) -> Span:
        return self.front, blocks

    def skips(self, step: int, front: torch.Tensor, modulated: Modulated) -> bool:
        assert self.latest is not None
        return relative_l1(front, self.latest) <= self.threshold

    def ran(self, front: torch.Tensor) -> None:
        self.latest = front


class DeltaDiT(Rule):
    """Every N-th step runs; between them the back blocks are skipped early, the front ones late.

    Chen et al., Delta-DiT: A Training-Free Acceleration Method Tailored for Diffusion Transformers,
    arXiv:2406.01125: what is kept is the change that the skipped blocks make.

    Args:
        interval: N.
        cached: how many blocks are skipped.
        boundary: steps before it skip the back blocks, the others the front ones.
    """

    def __init__(self, interval: int, cached: int, boundary: int) -> None:
        self.interval, self.cached, self.boundary = interval, cached, boundary

    def span(self, step: int, blocks: int) -> Span:
        return (blocks - self.cached, blocks) if step < self.boundary else (0, self.cached)

    def spans(self, blocks: int) -> Sequence[Span]:
        return [(blocks - self.cached, blocks), (0, self.cached)]

    def skips(self, step: int, front: torch.Tensor, modulated: Modulated) -> bool:
        return step % self.interval != 0

    def full_steps(self, steps: int, blocks: int) -> float:
        """Of a generation, a step with some blocks counted as their share."""
        full = len(range(0, steps, self.interval))
        return full + (steps - full) * (1 - self.cached / blocks)


def smallest_max_skip(ratios: Sequence[float], retention: int, budget: int, least: int) -> int:
    """The smallest `max_skip` from `least` on with which MagCache can reach the budget."""
    for max_skip in range(least, len(ratios) + 1):
        if MagCache(math.inf, ratios, max_skip, retention).full_steps() <= budget:
            return max_skip
    raise Absent(f"runs its first {retention} steps: cannot make {budget} full steps")
