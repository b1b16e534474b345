"""Reads the features that a cache would keep, from a model that runs in full.

The cache itself is the instrument: it is applied as usual, with a state whose histories compute
every step and hand each feature on. So what is recorded is what would be cached, for every model,
granularity and number of guidance branches that the adapters know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from foca_dit.adapters.hooks import find_hook
from foca_dit.api import foca_cache
from foca_dit.branch import Branch
from foca_dit.clock import NoiseLevels
from foca_dit.config import FoCaCacheConfig
from foca_dit.history import FeatureHistories
from foca_dit.state import CacheState

Sink = Callable[[int, int, int, torch.Tensor], None]
"""Takes (step, branch, feature index, value) of every feature computed."""


class _Reader(FeatureHistories):
    """Histories that keep nothing and compute everything."""

    sink: Callable[[int, int, torch.Tensor], None]
    open_step = -1
    taken: set[int]

    def begin(self, step: int, *args: object, **kwargs: object) -> None:
        self.open_step, self.taken = step, set()

    def due(self, feature: int) -> bool:
        return True

    def commit(self, feature: int, value: torch.Tensor) -> None:
        if feature not in self.taken:  # as a history: a step's first call of the module counts
            self.taken.add(feature)
            self.sink(self.open_step, feature, value.detach())


class Recording(CacheState):
    """A state that records.

    Attributes:
        timesteps: the model's timestep at every step of the generation so far.
    """

    def __init__(self, config: FoCaCacheConfig, sink: Sink) -> None:
        super().__init__(config, restartable=True)
        self._sink = sink
        self._warned = True  # a recording skips nothing, and that is no news

    @property
    def timesteps(self) -> tuple[float, ...]:
        branches = list(self.branches.values())
        return tuple(branches[0].trajectory.timesteps) if branches else ()

    def _new_branch(self, timestep: float) -> Branch:
        branch, number = super()._new_branch(timestep), len(self.branches)
        assert self.features is not None
        reader = _Reader(self.settings, self.features, self.stats)
        reader.sink = lambda step, feature, value: self._sink(step, number, feature, value)
        branch.histories = reader
        return branch


@contextmanager
def recording(model: torch.nn.Module, granularity: str, sink: Sink) -> Iterator[Recording]:
    """Records one generation of a model, which runs inside the block.

    Args:
        model: a supported transformer, without a cache.
        granularity: "module", "stack" or "output".
        sink: takes every feature computed; the tensor is the model's own, to copy if it is kept.

    Raises:
        TypeError, ValueError: the model is not supported, or not at this granularity, or has a
            cache already.
    """
    config = FoCaCacheConfig(cache_interval=1, granularity=granularity)
    with foca_cache(model, config) as model:
        hook = find_hook(model)
        assert hook is not None
        state = Recording(config, sink)
        state.attach(model, granularity, hook.features, hook.state.levels)
        hook.state = state
        yield state


class Trajectories:
    """A sink that keeps one generation's features, by branch and feature, in host memory.

    An inner product of two steps needs both of them, so all S values of a feature have to be kept
    until the last one is there: on the host, for the device has a model to hold.

    Args:
        max_elements: elements kept per value; larger ones are read at an even stride, and scaled so
            that inner products stay those of the whole up to sampling. None: all, in their shape.
    """

    def __init__(self, max_elements: int | None = None) -> None:
        self._limit = max_elements
        self._values: dict[tuple[int, int], list[torch.Tensor]] = {}
        self._scales: dict[tuple[int, int], float] = {}

    def __call__(self, step: int, branch: int, feature: int, value: torch.Tensor) -> None:
        kept = self._values.setdefault((branch, feature), [])
        if len(kept) != step:
            raise ValueError(
                f"calibration: feature {feature} came at step {step} after {len(kept)} steps: "
                "expected one generation with the same guidance branches at every step"
            )
        if self._limit is not None:
            flat = value.reshape(-1)
            read = flat[:: stride(flat.numel(), value.shape[-1], self._limit)]
            if read.numel():
                self._scales[branch, feature] = math.sqrt(flat.numel() / read.numel())
            value = read
        kept.append(value.to("cpu", copy=True))

    def stacked(self, steps: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(branch, feature, float64 [S, ...]) of every feature.

        Raises:
            ValueError: one is missing at some step, or not finite.
        """
        for (branch, feature), kept in sorted(self._values.items()):
            if len(kept) != steps:
                raise ValueError(
                    f"calibration: expected feature {feature} at {steps} steps, got {len(kept)}"
                )
            values = torch.stack(kept).to(torch.float64)
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"calibration: feature {feature} is not finite at every step")
            yield branch, feature, values * self._scales.get((branch, feature), 1.0)


def stride(elements: int, channels: int, most: int) -> int:
    """The smallest stride that reads at most so many elements, and of all channels alike.

    Without a factor in common with the number of channels (the last dimension) it comes by each of
    them; with one, it would always read the same few.
    """
    step = max(1, -(-elements // most))
    while step > 1 and math.gcd(step, channels) > 1:
        step += 1
    return step


@dataclass(frozen=True)
class Recorded:
    """The features of one generation.

    Attributes:
        timesteps: the model's timestep at every step.
        num_features: L.
        levels: what a timestep means.
        sink: has the features, by branch and feature.
    """

    timesteps: tuple[float, ...]
    num_features: int
    levels: NoiseLevels
    sink: Trajectories

    def features(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(branch, feature, float64 [S, ...]) of every feature.

        Raises:
            ValueError: one is missing at some step, or not finite.
        """
        return self.sink.stacked(len(self.timesteps))


def recorded(
    name: str,
    model: torch.nn.Module,
    granularity: str,
    generations: Iterable[Callable[[], Any]],
    done: Callable[[], Any] | None = None,
    max_elements: int | None = None,
) -> Iterator[Recorded]:
    """Runs generations in full, one after the other, and hands each one's features on.

    Args:
        name: what messages begin with: the function and argument that the generations come from.
        model: a supported transformer, without a cache.
        granularity: "module", "stack" or "output".
        generations: each runs one whole generation, all with the same timesteps.
        done: called after each of them, when its features were used.
        max_elements: as of `Trajectories`.

    Raises:
        ValueError: no generation, one that does not run the model, or timesteps that differ.
    """
    first: tuple[float, ...] = ()
    for generate in generations:
        sink = Trajectories(max_elements)
        with recording(model, granularity, sink) as state:
            generate()
            found = Recorded(state.timesteps, state.features or 0, state.levels, sink)
        if not found.timesteps:
            raise ValueError(f"{name}: expected generations that run the model")
        first = first or found.timesteps
        if found.timesteps != first:
            raise ValueError(
                f"{name}: expected the same timesteps in all, got "
                f"{_ends(first)} and {_ends(found.timesteps)}"
            )
        yield found
        if done is not None:
            done()
    if not first:
        raise ValueError(f"{name}: expected at least one generation, got none")


def _ends(timesteps: Sequence[float]) -> str:
    if len(timesteps) < 2:
        return f"{len(timesteps)} steps"
    return f"{len(timesteps)} steps from {timesteps[0]:g}, {timesteps[1]:g} to {timesteps[-1]:g}"
