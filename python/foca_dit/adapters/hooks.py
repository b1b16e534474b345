"""The hooks that put a cache into a model.

`ModelHook` on the model finds the state, branch and step of a call. The hooks below it look that
call up and decide: compute and commit, or forecast. No `forward` is rewritten.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from foca_dit.adapters import registry
from foca_dit.adapters.gates import gates_of, table_row
from foca_dit.adapters.layout import Layout, Located
from foca_dit.adapters.output import OutputShape
from foca_dit.adapters.registry import Hook
from foca_dit.adapters.spec import BlockGroup, LinearGates, ModelSpec, Segment, SharedGates, part
from foca_dit.history import FeatureHistories
from foca_dit.state import CacheState

Mode = Literal["full", "modules", "skip"]
"""What a call does: compute all; forecast single modules; forecast all in one launch."""


class _Call(threading.local):
    """The model call in progress in this thread."""

    def __init__(self) -> None:
        self.histories: FeatureHistories | None = None
        self.mode: Mode = "full"
        self.arguments: dict[str, Any] = {}
        self.tokens = 0
        self.stack_input: torch.Tensor | None = None
        self.sums: dict[int, torch.Tensor] = {}
        self.dtype = torch.float32  # of the features in the sums
        self.captured: dict[str, Any] = {}

    @contextmanager
    def opened(
        self, histories: FeatureHistories, mode: Mode, arguments: dict[str, Any]
    ) -> Iterator[None]:
        self.histories, self.mode, self.arguments = histories, mode, arguments
        try:
            yield
        finally:
            self.histories = self.stack_input = None
            self.arguments, self.sums, self.captured = {}, {}, {}


class _Scope(threading.local):
    """What `cache_scope` sets for the calls inside it, in this thread."""

    active = False
    state: CacheState | None = None
    branch: str | None = None


class ModelHook(Hook):
    """On the model itself: finds the step, opens and closes it, and counts what happened."""

    _is_stateful = True  # diffusers then tells us its cache_context, and when a pipeline ends

    def __init__(
        self, spec: ModelSpec, granularity: str, layout: Layout, state: CacheState
    ) -> None:
        self.spec = spec
        self.granularity = granularity
        self.layout = layout
        self.features = len(layout.slots)
        self.state = state
        self.collapse = True  # False: skip module by module, to compare
        self.call = _Call()
        self.scope = _Scope()
        self._output = OutputShape()
        self._warned = False
        self._signature: inspect.Signature | None = None

    @property
    def is_modular(self) -> bool:
        """Whether single features can be forecast while others are computed."""
        return self.granularity == "module" and self.spec.is_modular and not self.layout.accumulated

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = self.fn_ref.original_forward
        state = self.scope.state if self.scope.active else self.state
        if state is None:
            return run(*args, **kwargs)
        if self._signature is None:
            self._signature = inspect.signature(type(module).forward)
        bound = self._signature.bind_partial(module, *args, **kwargs).arguments
        if (reason := self._why_not(bound)) is not None:
            state.stats.bypasses[reason] += 1
            state.reset()  # it does not see this step, so it cannot count on from here
            self._warn(reason)
            return run(*args, **kwargs)
        timestep = _scalar(bound[self.spec.timestep])
        branch = state.enter(timestep, bound[self.spec.sample], self._branch_name())
        histories = branch.histories
        due = sum(histories.due(feature) for feature in range(self.features))
        mode, kind = self._mode(due, state)
        with self.call.opened(histories, mode, bound):
            if self.granularity == "output":
                output = self._cached_output(histories, run, args, kwargs)
            else:
                output = run(*args, **kwargs)
                dtype = state.settings.history_dtype or self.call.dtype
                for slot, total in self.call.sums.items():
                    histories.commit(slot, total.to(dtype))
        state.leave(branch, timestep)
        setattr(state.stats, f"{kind}_steps", getattr(state.stats, f"{kind}_steps") + 1)
        if mode == "skip" and self.granularity != "output":
            state.stats.forecasts += self.features
            state.stats.collapsed_skips += 1
        return output

    def _mode(self, due: int, state: CacheState) -> tuple[Mode, str]:
        """What a call does with `due` features to compute, and what it counts as."""
        if due == self.features:
            return "full", "full"
        if due == 0:
            return "skip" if self.collapse or not self.is_modular else "modules", "skipped"
        if self.is_modular:
            return "modules", "mixed"
        why = (
            "the histories are sums over features"
            if self.layout.accumulated
            else "the blocks pass on a second stream, which has no history"
        )
        state.stats.fallbacks[
            f"the schedule computes some features and skips others, but {why}: computed in full"
        ] += 1
        return "full", "full"

    def _cached_output(self, histories: FeatureHistories, run: Any, args: Any, kwargs: Any) -> Any:
        if histories.due(0):
            output = run(*args, **kwargs)
            histories.commit(0, self._output.note(output, self.call.arguments))
            return output
        return self._output.rebuild(histories.forecast(0), self.call.arguments)

    def _why_not(self, bound: dict[str, Any]) -> str | None:
        """Why this call cannot be cached, or None if it can."""
        if not _one_timestep(bound.get(self.spec.timestep)):
            return "the call does not pass one timestep for the whole batch"
        sample = bound.get(self.spec.sample)
        if not isinstance(sample, torch.Tensor):
            return f"the call does not pass a tensor as '{self.spec.sample}'"
        if torch.is_grad_enabled() and sample.requires_grad:
            return "the sample requires a gradient"
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._module_parameters()):
            return "gradients are enabled: call the model under torch.no_grad()"
        if (name := self.spec.forbidden(bound)) is not None:
            return f"the call passes {name}, which feeds something in between the blocks"
        return None

    def _branch_name(self) -> str | None:
        if self.scope.active:
            return self.scope.branch
        context = None if self.contexts is None else self.contexts._context
        return None if context is None else getattr(context, "name", context)

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        self._module_parameters = module.parameters
        return module

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.state.reset()
        return module

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"foca_dit: this call runs uncached: {reason}. Further such calls are only "
                "counted: see foca_cache_stats(model)['bypasses']",
                stacklevel=4,
            )


class FeatureHook(Hook):
    """On a cached module: compute and fold in, or forecast."""

    def __init__(self, call: _Call, located: Located, accumulated: bool) -> None:
        self.call, self.located, self.accumulated = call, located, accumulated

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        histories, call = self.call.histories, self.call
        run = self.fn_ref.original_forward
        if histories is None:
            return run(*args, **kwargs)
        slot = self.located.targets[0].slot
        if call.mode == "modules" and not histories.due(slot):
            return histories.forecast(slot)
        output = run(*args, **kwargs)
        value = self.located.feature.pick(output, call.tokens)
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


class CaptureHook(Hook):
    """On a modulation that all blocks share: keeps its output for the gates of this call."""

    def __init__(self, call: _Call, path: str) -> None:
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

    def __init__(self, call: _Call, layout: Layout, position: int, stack: bool) -> None:
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
            call.stack_input = stream
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
        # A copy: the model may still hold the stream it passed in.
        stream = stream.clone(memory_format=torch.contiguous_format)
        x = part(stream, self.group.tokens, call.tokens)
        slots = [self.layout.slots[index] for index in self.stage]
        gates = gates_of(slots, x, block, arguments, call.captured)
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


def find_hook(model: torch.nn.Module) -> ModelHook | None:
    """The cache hook of a model, or None if no cache is applied."""
    hook = registry.find(model)
    return hook if isinstance(hook, ModelHook) else None


def _one_timestep(timestep: Any) -> bool:
    """Whether a timestep is given, and is the same for the whole batch."""
    if not isinstance(timestep, torch.Tensor):
        return timestep is not None
    if timestep.dim() > 1:
        timestep = _of_samples(timestep)
    # A timestep expanded to the batch says so by its stride, without a look at its values.
    flat = timestep.reshape(-1)
    return flat.numel() == 1 or timestep.stride(0) == 0 or bool((flat == flat[0]).all())


def _scalar(timestep: Any) -> float:
    """The timestep of the whole batch: the first sample's (a host read on a GPU)."""
    if isinstance(timestep, torch.Tensor):
        return float(_of_samples(timestep).reshape(-1)[0])
    return float(timestep)


def _of_samples(timestep: torch.Tensor) -> torch.Tensor:
    """Timesteps per token as timesteps per sample: tokens of given images stand at lower ones."""
    return timestep.flatten(1).amax(1) if timestep.dim() > 1 else timestep
