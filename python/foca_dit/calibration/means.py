"""Mean features over calibration samples: what GOC's inflection set is found from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foca_dit.calibration.record import recorded


@dataclass(frozen=True, eq=False)
class MeanFeatures:
    """The mean of every feature over samples.

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
    for one in recorded(
        "record_means: argument 'generations'", model, granularity, generations, done
    ):
        timesteps = one.timesteps
        sums: dict[int, torch.Tensor] = {}
        for _, feature, values in one.features():
            added = values.sum(dim=1)  # [S, B, ...] over the batch
            sums[feature] = sums[feature] + added if feature in sums else added
            samples += values.shape[1] if feature == 0 else 0
        stacked = torch.stack([sums[feature] for feature in range(one.num_features)])
        if total is not None and stacked.shape != total.shape:
            raise ValueError(
                "record_means: argument 'generations': expected the same sizes in all, got "
                f"{list(total.shape)} and {list(stacked.shape)}"
            )
        total = stacked if total is None else total + stacked
    assert total is not None
    return MeanFeatures((total / samples).float(), timesteps, samples)
