"""The hooks that put a cache into a model, on diffusers' own hook registry.

`ModelHook` on the model finds the state, branch and step of a call. The hooks below it look that
call up and decide: compute and commit, or forecast. No `forward` is rewritten.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks import ModelHook as DiffusersHook
from diffusers.hooks.hooks import BaseState, StateManager

from foca_dit.adapters.spec import BlockGroup, Feature, ModelSpec
from foca_dit.clock import NoiseLevels
from foca_dit.history import FeatureHistories
from foca_dit.state import CacheState

HOOK_NAME = "foca_cache"


class _Call(threading.local):
    """The model call in progress in this thread."""

    histories: FeatureHistories | None = None
    collapsed = False
    stack_input: torch.Tensor | None = None


class _Scope(threading.local):
    """What `cache_scope` sets for the calls inside it, in this thread."""

    active = False
    state: CacheState | None = None
    branch: str | None = None


class ModelHook(DiffusersHook):
    """On the model itself: finds the step, opens and closes it, and counts what happened."""

    _is_stateful = True  # diffusers then tells us its cache_context, and when a pipeline ends

    def __init__(self, spec: ModelSpec, granularity: str, features: int, state: CacheState) -> None:
        super().__init__()
        self.spec = spec
        self.granularity = granularity
        self.features = features
        self.state = state
        self.collapse = True  # False: skip module by module, to compare
        self.call = _Call()
        self.scope = _Scope()
        self.contexts = StateManager(BaseState)
        self._warned = False
        self._signature: inspect.Signature | None = None

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
        self.call.histories = histories
        due = sum(histories.due(feature) for feature in range(self.features))
        self.call.collapsed = due == 0 and (self.collapse or self.granularity == "stack")
        try:
            if self.granularity == "output":
                output = self._cached_output(histories, run, args, kwargs, bound)
            else:
                output = run(*args, **kwargs)
        finally:
            self.call.histories = None
            self.call.stack_input = None
        state.leave(branch, timestep)
        kind = "skipped" if due == 0 else "full" if due == self.features else "mixed"
        setattr(state.stats, f"{kind}_steps", getattr(state.stats, f"{kind}_steps") + 1)
        return output

    def _cached_output(
        self, histories: FeatureHistories, run: Any, args: Any, kwargs: Any, bound: dict[str, Any]
    ) -> Any:
        if histories.due(0):
            output = run(*args, **kwargs)
            histories.commit(0, output[0])
            return output
        sample = histories.forecast(0)
        if not bound.get("return_dict", True):
            return (sample,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=sample)

    def _why_not(self, bound: dict[str, Any]) -> str | None:
        """Why this call cannot be cached, or None if it can."""
        if not _one_timestep(bound.get(self.spec.timestep)):
            return "the call does not pass one timestep for the whole batch"
        if torch.is_grad_enabled() and bound[self.spec.sample].requires_grad:
            return "the sample requires a gradient"
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._module_parameters()):
            return "gradients are enabled: call the model under torch.no_grad()"
        for name in self.spec.must_be_none:
            if bound.get(name) is not None:
                return f"the call passes {name}, which feeds something in between the blocks"
        return None

    def _branch_name(self) -> str | None:
        if self.scope.active:
            return self.scope.branch
        context = self.contexts._context
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


class FeatureHook(DiffusersHook):
    """On a cached module: compute and commit, or forecast."""

    def __init__(self, call: _Call, index: int) -> None:
        super().__init__()
        self.call, self.index = call, index

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        histories = self.call.histories
        if histories is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        if not histories.due(self.index):
            return histories.forecast(self.index)
        output = self.fn_ref.original_forward(*args, **kwargs)
        histories.commit(self.index, output)
        return output


class BlockHook(DiffusersHook):
    """On a block: in a skipped step the first one adds all forecasts, the others do nothing.

    With the stack as the only feature (`stack=True`) it also notes the stream before the first
    block and commits its change after the last one.
    """

    def __init__(
        self,
        call: _Call,
        spec: ModelSpec,
        group: BlockGroup,
        gated: Sequence[tuple[torch.nn.Module, Feature]],
        first: bool,
        last: bool,
        stack: bool,
    ) -> None:
        super().__init__()
        self.call, self.spec, self.group = call, spec, group
        self.gated, self.first, self.last, self.stack = gated, first, last, stack
        self._parameters: tuple[str, ...] = ()

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        self._parameters = tuple(inspect.signature(type(module).forward).parameters)[1:]
        return module

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        histories, call = self.call.histories, self.call
        if histories is None or not (call.collapsed or (self.stack and (self.first or self.last))):
            return self.fn_ref.original_forward(*args, **kwargs)
        arguments = dict(zip(self._parameters, args, strict=False), **kwargs)
        if call.collapsed:
            if self.first:
                # A copy: the model may still hold the stream it passed in.
                x = arguments[self.group.hidden].clone(memory_format=torch.contiguous_format)
                histories.add_forecasts_(x, self._gates(arguments))
                arguments[self.group.hidden] = x
            values = tuple(arguments[name] for name in self.group.returns)
            return values if len(values) > 1 else values[0]
        if self.first:
            call.stack_input = arguments[self.group.hidden]
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.last:
            named = dict(zip(self.group.returns, _tuple(output), strict=True))
            assert call.stack_input is not None
            histories.commit(0, named[self.group.hidden] - call.stack_input)
        return output

    def _gates(self, arguments: dict[str, Any]) -> list[torch.Tensor]:
        """One gate per feature, all blocks; empty at granularity stack."""
        gates, block_seen, conditioning = [], None, None
        for block, feature in self.gated:
            if block is not block_seen:
                assert self.spec.conditioning is not None
                block_seen, conditioning = block, self.spec.conditioning(block, arguments)
            assert conditioning is not None
            gates.append(feature.gate(block, conditioning))
        return gates


def install(
    model: torch.nn.Module,
    spec: ModelSpec,
    granularity: str,
    state: CacheState,
    levels: NoiseLevels,
) -> None:
    """Puts the hooks of one granularity into a model."""
    groups = [(group, list(model.get_submodule(group.path).children())) for group in spec.groups]
    located = [
        (block, feature)
        for group, blocks in groups
        for block in blocks
        for feature in group.features
    ]
    features = len(located) if granularity == "module" else 1
    state.attach(features, levels)
    root = ModelHook(spec, granularity, features, state)
    _register(model, root)
    if granularity == "module":
        for index, (block, feature) in enumerate(located):
            _register(block.get_submodule(feature.module), FeatureHook(root.call, index))
    if granularity in ("module", "stack"):
        blocks = [(group, block) for group, members in groups for block in members]
        gated = located if granularity == "module" else []
        for position, (group, block) in enumerate(blocks):
            hook = BlockHook(
                call=root.call,
                spec=spec,
                group=group,
                gated=gated,
                first=position == 0,
                last=position == len(blocks) - 1,
                stack=granularity == "stack",
            )
            _register(block, hook)
    HookRegistry.check_if_exists_or_initialize(model)._child_registries_cache = None


def find_hook(model: torch.nn.Module) -> ModelHook | None:
    """The cache hook of a model, or None if no cache is applied."""
    registry = getattr(model, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook(HOOK_NAME)
    return hook if isinstance(hook, ModelHook) else None


def uninstall(model: torch.nn.Module) -> None:
    """Takes the hooks out again, and the registries that stand empty then."""
    if (hook := find_hook(model)) is not None:
        hook.state.reset()  # the histories go now, not when the garbage collector comes by
    HookRegistry.check_if_exists_or_initialize(model).remove_hook(HOOK_NAME, recurse=True)
    for module in model.modules():
        registry = module.__dict__.get("_diffusers_hook")
        if registry is None:
            continue
        registry._child_registries_cache = None
        if not registry.hooks:
            del module._diffusers_hook
            if getattr(module.forward, "__func__", None) is type(module).forward:
                del module.forward  # it shadows the class's own, unchanged


def _register(module: torch.nn.Module, hook: DiffusersHook) -> None:
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK_NAME)


def _one_timestep(timestep: Any) -> bool:
    """Whether a timestep is given, and is the same for the whole batch."""
    if not isinstance(timestep, torch.Tensor):
        return timestep is not None
    flat = timestep.reshape(-1)
    # A timestep expanded to the batch says so by its stride, without a look at its values.
    return flat.numel() == 1 or timestep.stride(0) == 0 or bool((flat == flat[0]).all())


def _scalar(timestep: Any) -> float:
    """The timestep of the whole batch: the first element (a host read on a GPU)."""
    if isinstance(timestep, torch.Tensor):
        return float(timestep.reshape(-1)[0])
    return float(timestep)


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
