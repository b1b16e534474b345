"""A skipped step as one CUDA graph: captured once per generation and branch, then replayed.

A skipped step computes next to nothing, so what costs is the host: it starts the embedding, a gate
for every feature and the head one small kernel after another. A graph starts them all at once. The
weights of the forecasts change from step to step; the kernels read them from a table on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from foca_dit.capture import (
    CAPTURES,
    NotCapturable,
    is_capturing,
    replaying,
    stream_of,
    watched,
)
from foca_dit.history import FeatureHistories
from foca_dit.stats import CacheStats

Arguments = Mapping[str, Any]
Step = Callable[[Arguments], Any]
"""The model's skipped step. It changes nothing, so it may run any number of times."""

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
"""What may stand beside tensors in arguments and output: equal values mean equal steps."""
TENSORS = (torch.Tensor, torch.nn.Parameter)

CHANGED = "a call differs from the captured one in more than the values of its tensors"
FACTORED = "the scheme's factors change from step to step"
HOOKED = "hooks of diffusers or accelerate work on the model's weights or inputs"
ELSEWHERE = "the model's weights are not all on the device of its features"
SHARDED = "the model's weights are sharded or wrapped"
REPLACED = "the step replaces the model's weights"
AUTOCAST = "autocast keeps casts of weights, which a graph would not renew"
NESTED = "the call is part of a capture already"


class SkipGraph:
    """One captured skipped step: new arguments and weights are copied in, then it is replayed."""

    def __init__(
        self,
        step: Step,
        module: torch.nn.Module,
        arguments: Arguments,
        histories: FeatureHistories,
    ) -> None:
        leaves, self._spec = tree_flatten(dict(arguments))
        self._allocations = histories.allocations
        self._device = device = histories.device
        self._stream = stream_of(device)
        with torch.inference_mode(False), torch.no_grad():  # to be written in either mode
            self._leaves = [
                _own(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves
            ]
            self._table = histories.table().to(device, copy=True)

        def run() -> Any:
            with histories.reading(self._table):
                return step(tree_unflatten(self._leaves, self._spec))

        before = _addresses(module)
        output = watched(run, device)
        if _addresses(module) != before:
            raise NotCapturable(REPLACED)
        for leaf in tree_leaves(output):
            if type(leaf) not in (*TENSORS, *PLAIN):
                raise NotCapturable(f"the model returns a {type(leaf).__name__}")
        self._replay, self._output = CAPTURES[device.type](run, device)

    def serves(self, arguments: Arguments, histories: FeatureHistories) -> bool:
        """Whether a replay computes this step: all is alike but the values of tensors."""
        leaves, spec = tree_flatten(dict(arguments))
        return (
            spec == self._spec
            and histories.allocations == self._allocations
            and not histories.factored
            and stream_of(self._device) == self._stream
            and not torch.is_autocast_enabled(self._device.type)
            and all(_alike(*pair) for pair in zip(self._leaves, leaves, strict=True))
        )

    def __call__(self, arguments: Arguments, histories: FeatureHistories) -> Any:
        """The output of this step, in new tensors."""
        for own, given in zip(self._leaves, tree_leaves(dict(arguments)), strict=True):
            if isinstance(own, torch.Tensor):
                _dense(own).copy_(_dense(given), non_blocking=True)
        self._table.copy_(histories.table(), non_blocking=True)
        with replaying:
            self._replay()
            return tree_map_only(torch.Tensor, torch.clone, self._output)


class SkippedSteps:
    """The skipped steps of one guidance branch: captured at the first, replayed from then on."""

    def __init__(self) -> None:
        self._graph: SkipGraph | None = None
        self._refused = ""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def run(
        self,
        step: Step,
        module: torch.nn.Module,
        arguments: Arguments,
        histories: FeatureHistories,
        stats: CacheStats,
    ) -> Any:
        """The output of a skipped step, by a graph if that can be; `stats` counts both.

        What is compiled runs as it was written here: a graph needs no fewer launches.
        """
        if self._graph is None and not self._refused:
            self._capture(step, module, arguments, histories)
        if self._graph is not None and not self._graph.serves(arguments, histories):
            self._graph, self._refused = None, CHANGED
        if self._graph is not None:
            stats.graph_replays += 1
            return self._graph(arguments, histories)
        stats.graph_refusals[self._refused] += 1
        return step(arguments)

    def _capture(
        self,
        step: Step,
        module: torch.nn.Module,
        arguments: Arguments,
        histories: FeatureHistories,
    ) -> None:
        self._refused = next(_obstacles(module, arguments, histories), "")
        if self._refused:
            return
        try:
            self._graph = SkipGraph(step, module, arguments, histories)
        except NotCapturable as error:
            self._refused = str(error)
        except Exception as error:  # the step itself still runs, and says if it is its own
            line = (str(error).splitlines() or [""])[0]
            self._refused = f"the capture failed: {type(error).__name__}: {line}"


def _obstacles(
    module: torch.nn.Module, arguments: Arguments, histories: FeatureHistories
) -> Iterator[str]:
    """Why the skipped steps of this generation cannot be one graph."""
    device = histories.device
    if device.type not in CAPTURES:
        yield f"the model runs on {device.type}: graphs are captured on {', '.join(CAPTURES)}"
    if is_capturing(device):
        yield NESTED
    if histories.factored:
        yield FACTORED
    if torch.is_autocast_enabled(device.type):
        yield AUTOCAST
    for name, value in arguments.items():
        for leaf in tree_leaves(value):
            if type(leaf) not in (*TENSORS, *PLAIN):
                yield f"argument '{name}' holds an instance of {type(leaf).__name__}"
            elif isinstance(leaf, torch.Tensor) and leaf.device != device:
                yield f"argument '{name}' is on {leaf.device}, the features on {device}"
    for part in module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        hooks = [] if registry is None else registry.hooks.values()
        foreign = (type(hook).__module__.partition(".")[0] != "foca_dit" for hook in hooks)
        if hasattr(part, "_hf_hook") or any(foreign):
            yield HOOKED
    for parameter in module.parameters():
        if type(parameter) is not torch.nn.Parameter or type(parameter.data) is not torch.Tensor:
            yield SHARDED
        if parameter.device != device:
            yield ELSEWHERE


def _addresses(module: torch.nn.Module) -> list[int]:
    """Where weights and buffers are."""
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


def _dense(value: torch.Tensor) -> torch.Tensor:
    """Without the dimensions that it was expanded in."""
    return value[tuple(slice(0, 1) if step == 0 else slice(None) for step in value.stride())]


def _own(value: torch.Tensor) -> torch.Tensor:
    """A copy, expanded in the same dimensions."""
    return _dense(value).clone().expand(value.shape)


def _alike(own: Any, given: Any) -> bool:
    """Whether a value may stand in the place of the one that was captured."""
    if not isinstance(own, torch.Tensor):
        return type(own) is type(given) and bool(own == given)
    return (
        isinstance(given, torch.Tensor)
        and own.shape == given.shape
        and own.dtype == given.dtype
        and own.device == given.device
        and [s == 0 for s in own.stride()] == [s == 0 for s in given.stride()]
    )
