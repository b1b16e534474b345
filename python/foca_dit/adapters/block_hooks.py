"""The hooks inside a model: on cached modules, on shared modulations and on blocks.

They look up the model call in progress in their thread and decide: compute and commit, or forecast.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor, Replicate

from foca_dit.adapters.gates import gates_ahead, table_row
from foca_dit.adapters.layout import Layout, Located
from foca_dit.adapters.registry import Hook
from foca_dit.adapters.spec import BlockGroup, LinearGates, Segment, SharedGates, part
from foca_dit.branch import Branch
from foca_dit.history import FeatureHistories

Mode = Literal["full", "modules", "skip"]
"""What a call does: compute all; forecast single modules; forecast all in one launch."""


class OtherTokens(Exception):
    """The stream of a skipped step is not that of the histories; nothing was added yet."""


class Call(threading.local):
    """The model call in progress in this thread."""

    def __init__(self) -> None:
        self.histories: FeatureHistories | None = None
        self.branch: Branch | None = None
        self.mode: Mode = "full"
        self.arguments: dict[str, Any] = {}
        self.tokens = 0
        self.stack_input: torch.Tensor | None = None
        self.sums: dict[int, torch.Tensor] = {}
        self.dtype = torch.float32  # of the features in the sums
        self.captured: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Call:
        copied: Call = memo.setdefault(id(self), Call())
        return copied

    @contextmanager
    def opened(
        self,
        histories: FeatureHistories,
        mode: Mode,
        arguments: dict[str, Any],
        branch: Branch | None = None,
    ) -> Iterator[None]:
        self.histories, self.mode, self.arguments = histories, mode, arguments
        self.branch = branch
        try:
            yield
        finally:
            self.histories = self.stack_input = self.branch = None
            self.arguments, self.sums, self.captured = {}, {}, {}


class FeatureHook(Hook):
    """On a cached module: compute and fold in, or forecast."""

    def __init__(self, call: Call, located: Located, accumulated: bool) -> None:
        self.call, self.located, self.accumulated = call, located, accumulated

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        histories, call = self.call.histories, self.call
        run = self.fn_ref.original_forward
        if histories is None:
            return run(*args, **kwargs)
        slot = self.located.targets[0].slot
        if call.mode == "modules" and not histories.due(slot):
            return histories.forecast(slot)
        output = _gathered(run(*args, **kwargs))
        value = _local(self.located.feature.pick(output, call.tokens))
        if self.accumulated:
            self._accumulate(value)
        else:
            histories.commit(slot, value)
        return output

    def _accumulate(self, value: torch.Tensor) -> None:
        """Adds to the sums over features, in float32; they are committed when the model returns."""
        feature, gates, sums = self.located.feature, self.located.group.gates, self.call.sums
        self.call.dtype = value.dtype
        for target in self.located.targets:
            if target.slot not in sums:
                sums[target.slot] = torch.zeros_like(value, dtype=torch.float32)
            if target.by_table and feature.chunk is not None:
                assert isinstance(gates, SharedGates)
                row = table_row(self.located.block, gates, feature.chunk, value)
                sums[target.slot].addcmul_(value, row)
            else:
                sums[target.slot].add_(value)


def _gathered(output: Any) -> Any:
    """The whole of what a layer of tensor parallelism returns, in which ranks may hold summands.

    The layer's own hook, which runs later, would gather it; it lets a whole one pass.
    """
    if isinstance(output, DTensor):
        return output.redistribute(placements=[Replicate()] * output.device_mesh.ndim)
    return output


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


class CaptureHook(Hook):
    """On a modulation that all blocks share: keeps its output for the gates of this call."""

    def __init__(self, call: Call, path: str) -> None:
        self.call, self.path = call, path

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.call.mode == "skip" and self.call.histories is not None:
            self.call.captured[self.path] = output
        return output


class BlockHook(Hook):
    """On a block: in a skipped step the first one adds all forecasts, the others do nothing.

    With the stack as the only feature (`stack=True`) it also notes the stream before the first
    block and commits its change after the last one.
    """

    def __init__(self, call: Call, layout: Layout, position: int, stack: bool) -> None:
        self.call, self.layout, self.stack = call, layout, stack
        self.group: BlockGroup = layout.blocks[position][0]
        self.stage: Sequence[int] = layout.stages.get(position, ())
        self.first, self.last = position == 0, position == len(layout.blocks) - 1
        self._parameters: tuple[str, ...] = ()

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        self._parameters = tuple(inspect.signature(type(module).forward).parameters)[1:]
        return module

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        call, run = self.call, self.fn_ref.original_forward
        ends = self.first or (self.stack and self.last)
        if call.histories is None or not (call.mode == "skip" or ends):
            return run(*args, **kwargs)
        arguments = dict(zip(self._parameters, args, strict=False), **kwargs)
        stream = arguments[self.group.hidden]
        if self.first:
            call.tokens = stream.shape[-2]
        if call.mode == "skip":
            if self.stage:
                arguments[self.group.hidden] = self._forecast(module, stream, arguments)
            values = tuple(arguments[name] for name in self.group.returns)
            return values if len(values) > 1 else values[0]
        if self.first and self.stack:
            call.stack_input = stream.clone()  # blocks may write to it
        output = run(*args, **kwargs)
        if self.last and self.stack:
            self._commit_stack(call.histories, output)
        return output

    def _commit_stack(self, histories: FeatureHistories, output: Any) -> None:
        values = output if isinstance(output, tuple) else (output,)
        stream = dict(zip(self.group.returns, values, strict=True))[self.group.hidden]
        before = self.call.stack_input
        assert before is not None
        after = part(stream, self.group.tokens, self.call.tokens)
        histories.commit(0, after.to(before.device) - before)

    def _forecast(
        self, block: torch.nn.Module, stream: torch.Tensor, arguments: dict[str, Any]
    ) -> torch.Tensor:
        """The stream plus all forecasts of this stage, in one launch."""
        call, histories = self.call, self.call.histories
        assert histories is not None
        if not self.layout.new_stream:  # the model may still read what it passed in
            stream = stream.clone(memory_format=torch.contiguous_format)
        stream = stream.contiguous()
        x = part(stream, self.group.tokens, call.tokens)
        if self.first and not histories.fits(self.stage[0], x):
            raise OtherTokens
        slots = [self.layout.slots[index] for index in self.stage]
        gates = gates_ahead(call.branch, slots, x, block, arguments, call.captured)
        segments = self._segments(x, gates, arguments)
        if segments is None:
            histories.add_forecasts_(x, gates, self.stage)
            return stream
        for sample, start, stop, row in segments:
            index = (slice(sample, sample + 1), slice(start, stop))
            own = [gate[row : row + 1] if len(gate) > 1 else gate for gate in gates]
            histories.add_forecasts_(x[index], own, self.stage, index)
        return stream

    def _segments(
        self, x: torch.Tensor, gates: Sequence[torch.Tensor], arguments: dict[str, Any]
    ) -> Sequence[Segment] | None:
        """Which tokens are added with which gates; None: all at once."""
        source = self.group.gates
        if gates and isinstance(source, LinearGates) and source.segments is not None:
            segments = source.segments(self.call.arguments, arguments, x.shape)
            if segments is not None:
                return segments
        if x.is_contiguous():
            return None
        return [(sample, 0, x.shape[1], sample) for sample in range(len(x))]
