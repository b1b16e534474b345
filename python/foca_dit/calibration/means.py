"""Mean features over calibration samples: what GOC's and EOC's statistics are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foca_dit.calibration.record import Trajectories, recording


@dataclass(frozen=True, eq=False)
class MeanFeatures:
    """The mean of every feature over samples, and the share of it that the samples differ in.

    Attributes:
        values: float32 [L, S, ...], the mean over samples (and guidance branches) of the L
            features at S steps; the remaining dimensions are a feature's without its batch.
        timesteps: the model's timestep at every step.
        samples: how many samples, branches counted.
    """

    values: torch.Tensor
    timesteps: tuple[float, ...]
    samples: int


def record_means(
    model: torch.nn.Module,
    granularity: str,
    generations: Sequence[Callable[[], Any]],
    done: Callable[[], Any] | None = None,
) -> MeanFeatures:
    """Runs generations in full and averages their features.

    Args:
        model: a supported transformer, without a cache.
        granularity: "module", "stack" or "output".
        generations: each runs one whole generation, all of one resolution and one list of
            timesteps.
        done: called after each of them.

    Raises:
        ValueError: no generation, or features or timesteps that differ.
    """
    total: torch.Tensor | None = None
    timesteps: tuple[float, ...] = ()
    samples = 0
    for generate in generations:
        sink = Trajectories()
        with recording(model, granularity, sink) as state:
            generate()
            own, features = state.timesteps, state.features or 0
        sums: dict[int, torch.Tensor] = {}
        for _, feature, values in sink.stacked(len(own)):
            added = values.sum(dim=1)  # [S, B, ...] over the batch
            sums[feature] = sums[feature] + added if feature in sums else added
            samples += values.shape[1] if feature == 0 else 0
        if not sums:
            raise ValueError("record_means: expected a generation that runs the model")
        stacked = torch.stack([sums[feature] for feature in range(features)])
        if total is not None and (own != timesteps or stacked.shape != total.shape):
            raise ValueError(
                "record_means: argument 'generations': expected the same timesteps and sizes in "
                f"all, got {list(total.shape)} and {list(stacked.shape)}"
            )
        total, timesteps = stacked if total is None else total + stacked, own
        if done is not None:
            done()
    if total is None:
        raise ValueError("record_means: argument 'generations': expected at least one, got none")
    return MeanFeatures((total / samples).float(), timesteps, samples)
