"""The shape of an adapter: a declarative table that says where a model keeps what caching needs.

A supported block is a chain of gated residuals, `x = x + gate * module(...)`, on one stream of
image (or video) tokens x [B, S, D]. Beside it may run a text stream; as far as the model drops it
after its last block it is dead in a skipped step, and gets neither history nor forecast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

Tokens = Literal["all", "first", "last"]
"""Where the stream's tokens stand in a tensor that may hold text tokens beside them."""

Arguments = Mapping[str, Any]
"""The arguments of a call, by name."""

Segment = tuple[int, int, int, int]
"""(sample, first token, token after the last, row of the conditioning): tokens with one gate."""


def part(value: torch.Tensor, tokens: Tokens, count: int) -> torch.Tensor:
    """The `count` tokens of the stream in a tensor [B, S', D]: a view."""
    if tokens == "all":
        return value
    return value[:, :count] if tokens == "first" else value[:, value.shape[1] - count :]


def as_batch(sample: Any) -> Any:
    """A list of samples of one shape, dtype and device as one tensor; anything else as it is."""
    if not is_list_of_tensors(sample):
        return sample
    kinds = {(one.shape, one.dtype, one.device) for one in sample}
    return torch.stack(list(sample)) if len(kinds) == 1 else sample


def is_list_of_tensors(value: Any) -> bool:
    """Whether it is a list (or tuple) of one tensor per sample."""
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return is_list and all(isinstance(one, torch.Tensor) for one in value)


@dataclass(frozen=True)
class Feature:
    """One cached module output of a block, and which chunk of the modulation is its gate.

    Attributes:
        module: path of the module inside the block. Blocks without it do not have the feature.
        chunk: the gate is the chunk-th D of the modulation's rows, D being the stream's width.
            None: the block adds the output ungated.
        modulation: path of the modulation Linear inside the block (`LinearGates` only).
        item: for a module that returns a tuple, which entry the feature is.
        tokens: where the stream's tokens stand in the output.
        optional: whether it is no error if no block at all has the module.
    """

    module: str
    chunk: int | None = None
    modulation: str = ""
    item: int | None = None
    tokens: Tokens = "all"
    optional: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the feature is all that the module returns, so that it can stand in for it."""
        return self.item is None and self.tokens == "all"

    def pick(self, output: Any, count: int) -> torch.Tensor:
        """The feature in what the module returned, for a stream of `count` tokens."""
        value: torch.Tensor = output if self.item is None else output[self.item]
        return part(value, self.tokens, count)


@dataclass(frozen=True)
class LinearGates:
    """Gates that are rows of Linear layers inside the block.

    Attributes:
        conditioning: their input [R, C]: the name of a block argument, of which the SiLU is taken,
            or a function of (block, block arguments).
        per_block: whether the conditioning differs from block to block; else it is computed once.
        common: what the conditionings of all blocks have in common, computed once from the first
            block that has the gates: arguments for `conditioning` beside, or in the place of, the
            block's. With "rows" among them, sample b takes row rows[b] of the conditioning.
        ahead: the block arguments that, with its timestep, make up the whole conditioning. It can
            then be had for several timesteps at once: where the arguments hold "timesteps" [T],
            sample b at the t-th of them is row t * B + b. Empty: step by step.
        segments: (model arguments, block arguments, shape of x) -> which tokens take which row of
            the conditioning; None: row b serves all tokens of sample b.
    """

    conditioning: str | Callable[[torch.nn.Module, Arguments], torch.Tensor]
    per_block: bool = False
    common: Callable[[torch.nn.Module, Arguments], Arguments] | None = None
    ahead: tuple[str, ...] = ()
    segments: Callable[[Arguments, Arguments, torch.Size], Sequence[Segment]] | None = None


@dataclass(frozen=True)
class SharedGates:
    """Gates out of one modulation that all blocks share: `table[chunk] + shared[chunk]`.

    Attributes:
        argument: the block argument that carries the shared part, [B, n D], [B, n, D], or per token
            [B, S, n D], [B, S, n, D].
        module: instead, path of the module in the model that returns it, before the blocks run.
        table: path of the block's own part, a parameter [n, D] or [1, n, D]; "": none.
    """

    argument: str = ""
    module: str = ""
    table: str = ""


@dataclass(frozen=True)
class BlockGroup:
    """A ModuleList of blocks that the model runs one after another.

    Attributes:
        path: path of the ModuleList in the model.
        hidden: the blocks' argument that carries the stream which is cached.
        returns: the blocks' return value, as names of their arguments (one name: a bare tensor).
        features: the cached modules of every block, in the order in which they add to the stream.
        gates: what the features are multiplied by; None: all are added ungated.
        tokens: where the stream's tokens stand in `hidden`.
    """

    path: str
    hidden: str = "hidden_states"
    returns: tuple[str, ...] = ("hidden_states",)
    features: tuple[Feature, ...] = ()
    gates: LinearGates | SharedGates | None = None
    tokens: Tokens = "all"


@dataclass(frozen=True)
class ModelSpec:
    """One transformer class.

    Attributes:
        groups: its blocks, in the order in which they run; nothing but they may change the stream
            between the first and the last.
        class_name: name of the class (a subclass is found through its bases).
        sample: argument of `forward` that carries the latent: a tensor, or a list of samples of one
            shape.
        timestep: argument of `forward` that carries the timestep.
        timestep_scale: what one unit of sigma is in that timestep (flow-matching models).
        time_runs_up: whether timestep 0 is pure noise, so that sigma is 1 - timestep / scale.
        new_stream: whether what enters the first block is a new tensor that nothing reads again: a
            skipped step then adds in it, not in a copy of it.
        must_be_none: arguments of `forward` that feed something in between the blocks; a call that
            uses one runs uncached. "name.key" is a key of an argument that is a dict.
        writes: whether a call with these arguments keeps keys and values for later ones, and is no
            step of the loop; it runs uncached. None: no call does.
    """

    groups: tuple[BlockGroup, ...] = ()
    class_name: str = ""
    sample: str = "hidden_states"
    timestep: str = "timestep"
    timestep_scale: float = 1000.0
    time_runs_up: bool = False
    new_stream: bool = False
    must_be_none: tuple[str, ...] = ()
    writes: Callable[[Arguments], bool] | None = None

    @property
    def granularities(self) -> tuple[str, ...]:
        """What can be cached in this class, finest first."""
        if not self.groups:
            return ("output",)
        fine = all(group.features for group in self.groups)
        return ("module", "stack", "output") if fine else ("stack", "output")

    @property
    def is_modular(self) -> bool:
        """Whether single features can be forecast while others are computed.

        Not so where blocks pass a second stream on: it has no history to be forecast from.
        """
        return all(
            len(group.returns) == 1
            and group.tokens == "all"
            and all(feature.is_whole for feature in group.features)
            for group in self.groups
        )

    @property
    def is_shared(self) -> bool:
        """Whether all gates come from shared modulations, so that features can be accumulated."""
        return all(isinstance(group.gates, SharedGates) for group in self.groups)

    def forbidden(self, arguments: Arguments) -> str | None:
        """The first argument of a call that feeds something in between the blocks, or None."""
        for name in self.must_be_none:
            outer, _, key = name.partition(".")
            value = arguments.get(outer)
            if (value or {}).get(key) is not None if key else value is not None:
                return name
        return None
