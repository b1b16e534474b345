"""The cache of the block-wise model: one table, and a history per block position.

A skipped step of a block computes neither attention nor keys and values. If all positions take the
same full steps nobody misses them: at a skipped step no block attends to anything. `together` is
that: the positions are branches of one `CacheState`, which decides once per step for all.

With a state per position (`together=False`) an adaptive interval decides for each by itself, and a
block that is computed beside one that is not needs keys and values that this step does not have.
It gets those of the neighbour's latest full step (`RowMemory(keep=True)`): they are reused, while
features are forecast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from block_attention import Place, RowMemory
from inf_dit import InfDiT

from foca_dit import (
    CacheState,
    FoCaCacheConfig,
    apply_foca_cache,
    cache_scope,
    foca_cache_stats,
    register_adapter,
)
from foca_dit.adapters.spec import BlockGroup, Feature, LinearGates, ModelSpec

register_adapter(
    InfDiT,
    ModelSpec(
        groups=(
            BlockGroup(
                path="layers",
                hidden="x",
                returns=("x",),
                features=(
                    Feature("attention", chunk=2, modulation="modulation"),
                    Feature("cross"),  # in the first layer only, and ungated, as in Inf-DiT
                    Feature("mlp", chunk=5, modulation="modulation"),
                ),
                gates=LinearGates("condition"),
            ),
        ),
        sample="x",
        timestep="timestep",
    ),
)

PER_POSITION = ("full_steps", "skipped_steps", "collapsed_skips")


class BlockCaches:
    """The caches of one upsampling: call it with a position to run that block in its cache.

    Args:
        model: an `InfDiT` without a cache; gets one.
        config: how to cache.
        together: whether all positions take the same full steps.

    Attributes:
        memory: the keys and values that go with it, for `upsample`.
    """

    def __init__(
        self, model: torch.nn.Module, config: FoCaCacheConfig, together: bool = True
    ) -> None:
        self._model = apply_foca_cache(model, config)
        self._config, self._together = config, together
        self._states: dict[Place | None, CacheState] = {}
        self._positions: set[Place] = set()
        self.memory = RowMemory(keep=not together)

    def __call__(self, place: Place) -> AbstractContextManager[None]:
        key = None if self._together else place
        if key not in self._states:
            self._states[key] = CacheState(self._config)
        self._positions.add(place)
        return cache_scope(self._model, self._states[key], branch=str(place))

    def stats(self) -> dict[str, float]:
        """Steps per block position (the mean over positions), and bytes of all histories."""
        each = [foca_cache_stats(self._model, state) for state in self._states.values()]
        total = {key: sum(one[key] for one in each) for key in (*PER_POSITION, "nbytes")}
        return {
            key: value if key == "nbytes" else value / len(self._positions)
            for key, value in total.items()
        }
