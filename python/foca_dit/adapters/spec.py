"""The shape of an adapter: a declarative table that says where a model keeps what caching needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Feature:
    """One cached module output of a block, and the gate that it is multiplied by.

    The block computes `x = x + gate * module(...)`; the gate is one of the equal chunks of rows of
    a modulation Linear.

    Attributes:
        module: path of the module inside the block.
        modulation: path of the modulation Linear inside the block.
        chunk, chunks: which of how many equal chunks of its rows is the gate.
    """

    module: str
    modulation: str
    chunk: int
    chunks: int

    def gate(self, block: torch.nn.Module, conditioning: torch.Tensor) -> torch.Tensor:
        """The gate [B, 1, D] for a conditioning [B, C]: only its own rows are computed."""
        linear = block.get_submodule(self.modulation)
        if type(linear) is torch.nn.Linear and linear.weight.dtype == conditioning.dtype:
            rows = linear.out_features // self.chunks
            own = slice(self.chunk * rows, (self.chunk + 1) * rows)
            bias = None if linear.bias is None else linear.bias[own]
            return F.linear(conditioning, linear.weight[own], bias).unsqueeze(1)
        # LoRA, quantised or cast layers know best themselves how to be evaluated.
        gate: torch.Tensor = linear(conditioning).chunk(self.chunks, dim=1)[self.chunk]
        return gate.contiguous().unsqueeze(1)


@dataclass(frozen=True)
class BlockGroup:
    """A ModuleList of blocks that the model runs one after another.

    Attributes:
        path: path of the ModuleList in the model.
        hidden: the blocks' argument that carries the stream which is cached.
        returns: the blocks' return value, as names of their arguments (one name: a bare tensor).
        features: the cached modules of every block, in the order in which they add to the stream.
    """

    path: str
    hidden: str
    returns: tuple[str, ...]
    features: tuple[Feature, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """One transformer class.

    Attributes:
        class_name: name of the class (a subclass is found through its bases).
        groups: its blocks, in the order in which they run.
        sample: argument of `forward` that carries the latent.
        timestep: argument of `forward` that carries the timestep.
        timestep_scale: what one unit of sigma is in that timestep (flow-matching models).
        conditioning: (block, block arguments) -> input of its modulation Linear [B, C].
        must_be_none: arguments of `forward` that feed something in between the blocks; a call that
            uses one runs uncached.
    """

    class_name: str
    groups: tuple[BlockGroup, ...]
    sample: str = "hidden_states"
    timestep: str = "timestep"
    timestep_scale: float = 1000.0
    conditioning: Callable[[torch.nn.Module, Mapping[str, Any]], torch.Tensor] | None = None
    must_be_none: tuple[str, ...] = ()

    @property
    def granularities(self) -> tuple[str, ...]:
        """What can be cached in this class, finest first."""
        fine = all(group.features for group in self.groups)
        return ("module", "stack", "output") if fine else ("stack", "output")
