"""The hook on a model itself, and how it is found.

It finds the state, branch and step of a call; the hooks inside the model (`block_hooks.py`) then
compute or forecast. No `forward` is rewritten.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

from foca_dit import reasons
from foca_dit.adapters import registry
from foca_dit.adapters.arguments import (
    conditions,
    named,
    one_timestep,
    requires_grad,
    signature_of,
)
from foca_dit.adapters.block_hooks import Call, Mode, OtherTokens
from foca_dit.adapters.layout import Layout, Located, Shared
from foca_dit.adapters.lora import ActiveLoRA
from foca_dit.adapters.output import OutputShape
from foca_dit.adapters.registry import Hook
from foca_dit.adapters.spec import ModelSpec, as_batch, is_list_of_tensors
from foca_dit.branch import Branch
from foca_dit.clock import NoiseLevels
from foca_dit.history import FeatureHistories
from foca_dit.state import CacheState
from foca_dit.stats import CacheStats

_moving = threading.Lock()  # threads that begin at once move a hook once
_UNNAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)


@dataclass(eq=False)
class Scope:
    """What `cache_scope` sets for the calls inside it.

    Attributes:
        state, branch: of these calls.
        outer: the scope around it.
        left: whether it is over; a task that it is not left in may still have it.
    """

    state: CacheState | None
    branch: str
    outer: Scope | None
    left: bool = False


# Of this task or thread; a call that asyncio hands to a thread takes it along.
_SCOPES: ContextVar[dict[ModelHook, Scope]] = ContextVar("foca_dit.cache_scope")


class _Own(threading.local):
    """The model's own state, one per thread: two threads that generate must not mix histories."""

    def __init__(self, first: CacheState, thread: int) -> None:  # called anew in every thread
        self.state = first if threading.get_ident() == thread else first.sibling()


class _Outputs(weakref.WeakKeyDictionary[FeatureHistories, OutputShape]):
    """How the outputs look whose histories these are: requests of one model may differ in shape."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Outputs:
        return _Outputs()


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
        self._first = state
        self._own = _Own(state, threading.get_ident())
        self._pipeline: Callable[[], Any] = _nothing
        # Where the hooks are that may have to follow a module's replacement.
        self.placed: list[tuple[Located | Shared, torch.nn.Module]] = []
        self.collapse = True  # False: skip module by module, to compare
        self.call = Call()
        self._outputs = _Outputs()
        self._lora = ActiveLoRA()
        self._warned = False
        self._signature: inspect.Signature | None = None

    @property
    def state(self) -> CacheState:
        """The state that this thread's calls use outside any `cache_scope`."""
        return self._own.state

    @state.setter
    def state(self, state: CacheState) -> None:
        self._own.state = state

    @property
    def scope(self) -> Scope | None:
        """That of the innermost `cache_scope` around the call, if there is any."""
        scope = _SCOPES.get({}).get(self)
        while scope is not None and scope.left:
            scope = scope.outer
        return scope

    @contextmanager
    def scoped(self, state: CacheState | None, branch: str) -> Iterator[None]:
        """Sets the scope of the calls inside."""
        scope = Scope(state, branch, self.scope)
        _SCOPES.set({**_SCOPES.get({}), self: scope})
        try:
            yield
        finally:
            scope.left, scope.state = True, None
            # Scopes of other models, left earlier or later, stay as they are.
            others = {hook: known for hook, known in _SCOPES.get({}).items() if hook is not self}
            inner = self.scope
            _SCOPES.set(others if inner is None else {**others, self: inner})

    @property
    def states(self) -> tuple[CacheState, ...]:
        """The own states of all threads, this one's first."""
        return tuple(dict.fromkeys((self.state, *self._first.family)))

    def counts(self) -> CacheStats:
        """What the own states of all threads have counted, those that are gone included."""
        total = replace(self.state.stats)
        for other in self.states[1:]:
            total.add(other.stats)
        total.add(self._first.departed())
        return total

    @property
    def is_modular(self) -> bool:
        """Whether single features can be forecast while others are computed."""
        return self.granularity == "module" and self.spec.is_modular and not self.layout.accumulated

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = self.fn_ref.original_forward
        scope = self.scope
        state = self.state if scope is None else scope.state
        if state is None:
            return run(*args, **kwargs)
        if self._signature is None:
            self._signature = signature_of(type(module), self.spec.sample)
        bound = named(self._signature, module, args, kwargs)
        sample = as_batch(bound.get(self.spec.sample))
        reason = self._why_not(bound, sample)
        timestep = None if reason else one_timestep(bound.get(self.spec.timestep))
        if timestep is None:
            reason = reason or "the call does not pass one timestep for the whole batch"
            state.stats.bypasses[reason] += 1
            state.forget(self._branch_name())  # it misses this step, so it cannot count on
            if reason is not reasons.WRITES:
                self._warn(reason)
            return run(*args, **kwargs)
        self._follow_scheduler(state)
        dtype = getattr(bound[self.spec.timestep], "dtype", None)
        drawn = [*conditions(bound), *self._lora.conditions(module, bound)]
        branch = state.enter(timestep, sample, self._branch_name(), dtype, drawn)
        histories = branch.histories
        due = sum(histories.due(feature) for feature in range(self.features))
        mode, kind = self._mode(due, state)
        if mode == "skip":
            try:
                output = self._skipped(branch, state, bound, args, kwargs)
            except OtherTokens:
                histories.forget()
                state.stats.fallbacks[reasons.OTHER_TOKENS] += 1
                mode, kind = "full", "full"
        if mode != "skip":
            self._follow_modules(module)
            branch.ahead.forget()
            with self.call.opened(histories, mode, bound, branch):
                output = self._run(histories, state, args, kwargs)
        state.leave(branch)
        setattr(state.stats, f"{kind}_steps", getattr(state.stats, f"{kind}_steps") + 1)
        if mode == "skip" and self.granularity != "output":
            state.stats.forecasts += self.features
            state.stats.collapsed_skips += 1
        return output

    def _skipped(
        self, branch: Branch, state: CacheState, bound: dict[str, Any], args: Any, kwargs: Any
    ) -> Any:
        """A skipped step, by a graph where that is asked for."""
        histories = branch.histories
        if self._is_graphed(state):
            return branch.skipped.run(
                lambda given: self.perform(histories, "skip", state, dict(given)),
                *(self._root, bound, histories, state.stats),
            )
        with self.call.opened(histories, "skip", bound, branch):
            return self._run(histories, state, args, kwargs)

    def _is_graphed(self, state: CacheState) -> bool:
        """Whether skipped steps are to be replayed: at `output` there is nothing to launch."""
        if not state.settings.cuda_graph or self.granularity == "output":
            return False
        assert self._signature is not None
        _, *parameters = self._signature.parameters.values()
        if unnamed := any(parameter.kind in _UNNAMED for parameter in parameters):
            state.stats.graph_refusals["the model's forward takes arguments without names"] += 1
        return not unnamed

    def perform(
        self, histories: FeatureHistories, mode: Mode, state: CacheState, kwargs: dict[str, Any]
    ) -> Any:
        """One call with everything decided: what a dry run needs and `new_forward` ends in."""
        with self.call.opened(histories, mode, kwargs):
            return self._run(histories, state, (), kwargs)

    def _run(self, histories: FeatureHistories, state: CacheState, args: Any, kwargs: Any) -> Any:
        run = self.fn_ref.original_forward
        if self.granularity == "output":
            return self._cached_output(histories, run, args, kwargs)
        output = run(*args, **kwargs)
        # A sum of float16 features may leave their range: it is kept like one of float32's.
        of = torch.float32 if self.call.dtype == torch.float16 else self.call.dtype
        dtype = state.settings.kept_as(of)
        for slot, total in self.call.sums.items():
            histories.commit(slot, total.to(dtype))
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
        if self.call.mode != "skip":
            output = run(*args, **kwargs)
            shape = self._outputs.setdefault(histories, OutputShape())
            histories.commit(0, shape.note(output, self.call.arguments))
            return output
        return self._outputs[histories].rebuild(histories.forecast(0), self.call.arguments)

    def _why_not(self, bound: dict[str, Any], sample: Any) -> str | None:
        """Why this call cannot be cached, or None if it can at one timestep."""
        if is_list_of_tensors(sample):
            return f"the samples in the list '{self.spec.sample}' differ in shape, dtype or device"
        if not isinstance(sample, torch.Tensor):
            what = "a tensor, or a list of tensors," if isinstance(sample, list) else "a tensor"
            return f"the call does not pass {what} as '{self.spec.sample}'"
        if torch.is_grad_enabled() and requires_grad(bound):
            return "an argument requires a gradient"
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._root.parameters()):
            return "gradients are enabled: call the model under torch.no_grad()"
        if self.spec.writes is not None and self.spec.writes(bound):
            return reasons.WRITES
        if (name := self.spec.forbidden(bound)) is not None:
            return f"the call passes {name}, which feeds something in between the blocks"
        for block in self._blocks:
            for module in (block, *block._modules.values()):
                if module is None or "_diffusers_hook" not in module.__dict__:
                    continue  # most have none, and this is asked at every step
                if (reason := registry.disturbed_by(module)) is not None:
                    return reason
            if self.granularity == "module" and getattr(block, "_chunk_size", None) is not None:
                return "forward chunking runs the blocks' feed-forwards in pieces"
        for module in self._watched:
            if hook := registry.changed_by(module, before=self.granularity == "stack"):
                where = f"a forward hook on {type(module).__name__} ({hook})"
                return f"{where} may change what is cached"
        return None

    @property
    def _watched(self) -> list[torch.nn.Module]:
        """Where a forward hook would be missed by forecasts, or count twice."""
        if self.granularity == "stack":
            return self._blocks
        return [module for located, module in self.placed if isinstance(located, Located)]

    def _follow_modules(self, root: torch.nn.Module) -> None:
        """Moves hooks to modules that now stand in the place of others: LoRA loaded or unloaded."""
        with _moving:
            for index, (located, was) in enumerate(self.placed):
                if (now := located.module) is not was:
                    registry.move(root, was, now)
                    self.placed[index] = located, now

    def belong_to(self, pipeline: Any) -> None:
        """Follows the pipeline's scheduler, and does not keep the pipeline alive."""
        self._pipeline = _reference(pipeline)

    def _follow_scheduler(self, state: CacheState) -> None:
        """Another scheduler in the pipeline means other noise levels, and fits not every plan."""
        scheduler = getattr(self._pipeline(), "scheduler", None)
        if scheduler is None or scheduler is state.levels.scheduler:
            return
        if (origin := state.settings.scheme.origin) is not None:
            origin.check(self._root, self.granularity, scheduler)
        state.levels = NoiseLevels.of(scheduler, self.spec.timestep_scale, self.spec.time_runs_up)

    def _branch_name(self) -> str | None:
        """As the scope, and the pipeline by diffusers' `cache_context`, name it, or None."""
        context = None if self.contexts is None else self.contexts._context
        name = None if context is None else getattr(context, "name", context)
        if self.scope is None:
            return name
        return self.scope.branch if name is None else f"{self.scope.branch}, {name}"

    def initialize_hook(self, module: torch.nn.Module) -> torch.nn.Module:
        self._root = module
        lists = (part for part in module.modules() if isinstance(part, torch.nn.ModuleList))
        listed = [block for block in itertools.chain(*lists) if block is not None]
        self._blocks = [block for _, block in self.layout.blocks] or listed
        return module

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.state.reset()
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelHook:
        """Belongs to a copy of the model; begins empty, with counts of its own."""
        registry.check_copyable(self._root)
        levels = self._first.levels
        memo.setdefault(id(levels.scheduler), levels.scheduler)  # the pipeline's, not one's own
        copied: ModelHook = memo.setdefault(id(self), ModelHook.__new__(ModelHook))
        own = {"_first", "_own", "_pipeline", "_signature"}
        for name, value in self.__dict__.items():
            if name not in own:
                copied.__dict__[name] = copy.deepcopy(value, memo)
        state = self._first.anew_for(copied._root)
        copied._first, copied._own = state, _Own(state, threading.get_ident())
        copied._signature = None
        pipeline = self._pipeline()
        copied.belong_to(memo.get(id(pipeline), pipeline))  # a copy of the pipeline, if it is one
        return copied

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"foca_dit: this call runs uncached: {reason}. Further such calls are only "
                "counted: see foca_cache_stats(model)['bypasses']",
                stacklevel=4,
            )


def find_hook(model: torch.nn.Module) -> ModelHook | None:
    """The cache hook of a model, or None if no cache is applied."""
    hook = registry.find(model)
    return hook if isinstance(hook, ModelHook) else None


def _nothing() -> None:
    """A reference to no pipeline."""


def _reference(pipeline: Any) -> Callable[[], Any]:
    """A weak reference, where Python can make one."""
    if pipeline is None:
        return _nothing
    try:
        return weakref.ref(pipeline)
    except TypeError:
        return lambda: pipeline
