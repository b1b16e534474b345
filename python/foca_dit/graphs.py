"""A skipped step as one CUDA graph: captured once per generation and branch, then replayed.

A skipped step computes next to nothing, so what costs is the host: it starts the embedding, a gate
for every feature and the head one small kernel after another. A graph starts them all at once. The
weights of the forecasts change from step to step; the kernels read them from a table on the device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from foca_dit.history import FeatureHistories
from foca_dit.stats import CacheStats

Arguments = Mapping[str, Any]
Replay = Callable[[], None]
Step = Callable[[Arguments], Any]
"""The model's skipped step. It changes nothing, so it may run any number of times."""

CHANGED = "an argument is not as it was when the graph was captured"
FACTORED = "the scheme's factors change from step to step"
OFFLOADED = "the model's weights are offloaded"
PARALLEL = "the model's weights are sharded"
AUTOCAST = "autocast keeps casts of weights, which a graph would not renew"


_capturing = threading.Lock()


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: libraries keep a workspace for every stream that they ever saw."""
    return torch.cuda.Stream(device)


def captured_on_cuda(run: Callable[[], Any], device: torch.device) -> tuple[Replay, Any]:
    """(replay, output): a graph of what `run` launches, and the tensors that every replay fills.

    Not through `torch.cuda.graph`, which collects garbage and empties the allocator's cache first:
    that would cost more than a generation gains.
    """
    with _capturing, torch.cuda.device(device):
        stream, graph = _capture_stream(device), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # loads kernels and makes workspaces, which a capture cannot
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                output = run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, output


CAPTURES: dict[str, Callable[[Callable[[], Any], torch.device], tuple[Replay, Any]]] = {
    "cuda": captured_on_cuda
}
"""By type of device, how a graph is made."""


class SkipGraph:
    """One captured skipped step: new arguments and weights are copied in, then it is replayed."""

    def __init__(self, step: Step, arguments: Arguments, histories: FeatureHistories) -> None:
        leaves, self._spec = tree_flatten(dict(arguments))
        self._allocations = histories.allocations
        device = histories.device
        with torch.inference_mode(False), torch.no_grad():  # to be written in either mode
            self._leaves = [
                _own(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves
            ]
            self._table = histories.table().to(device, copy=True)
        with histories.reading(self._table):
            self._replay, self._output = CAPTURES[device.type](
                lambda: step(tree_unflatten(self._leaves, self._spec)), device
            )

    def serves(self, arguments: Arguments, histories: FeatureHistories) -> bool:
        """Whether a replay computes this step: all is alike but the values of tensors."""
        leaves, spec = tree_flatten(dict(arguments))
        return (
            spec == self._spec
            and histories.allocations == self._allocations
            and not histories.factored
            and all(_alike(*pair) for pair in zip(self._leaves, leaves, strict=True))
        )

    def __call__(self, arguments: Arguments, histories: FeatureHistories) -> Any:
        """The output of this step, in new tensors."""
        for own, given in zip(self._leaves, tree_leaves(dict(arguments)), strict=True):
            if isinstance(own, torch.Tensor):
                _dense(own).copy_(_dense(given), non_blocking=True)
        self._table.copy_(histories.table(), non_blocking=True)
        self._replay()
        return tree_map_only(torch.Tensor, torch.clone, self._output)


class SkippedSteps:
    """The skipped steps of one guidance branch: captured at the first, replayed ever after."""

    def __init__(self) -> None:
        self._graph: SkipGraph | None = None
        self._refused: str | None = None

    def run(
        self,
        step: Step,
        module: torch.nn.Module,
        arguments: Arguments,
        histories: FeatureHistories,
        stats: CacheStats,
    ) -> Any:
        """The output of a skipped step, by a graph if that can be; `stats` counts both."""
        if self._graph is None and self._refused is None:
            self._refused = next(_obstacles(module, arguments, histories), None)
            if self._refused is None:
                try:
                    self._graph = SkipGraph(step, arguments, histories)
                except RuntimeError as error:
                    line = (str(error).splitlines() or [type(error).__name__])[0]
                    self._refused = f"the capture failed: {line}"
        if self._graph is not None and self._graph.serves(arguments, histories):
            stats.graph_replays += 1
            return self._graph(arguments, histories)
        stats.graph_refusals[self._refused or CHANGED] += 1
        return step(arguments)


def _obstacles(
    module: torch.nn.Module, arguments: Arguments, histories: FeatureHistories
) -> Iterator[str]:
    """Why the skipped steps of this generation cannot be one graph."""
    device = histories.device
    if device.type not in CAPTURES:
        yield f"the model runs on {device.type}: graphs are captured on {', '.join(CAPTURES)}"
    if histories.factored:
        yield FACTORED
    if torch.is_autocast_enabled(device.type):
        yield AUTOCAST
    for name, value in arguments.items():
        for leaf in tree_leaves(value):
            if isinstance(leaf, torch.Tensor) and leaf.device != device:
                yield f"argument '{name}' is on {leaf.device}, the features on {device}"
    for part in module.modules():
        hooks = getattr(part, "_diffusers_hook", None)
        if hasattr(part, "_hf_hook") or (hooks and hooks.get_hook("group_offloading")):
            yield OFFLOADED
    for parameter in module.parameters():
        if isinstance(parameter, DTensor):
            yield PARALLEL
        if parameter.device != device:
            yield OFFLOADED


def _dense(value: torch.Tensor) -> torch.Tensor:
    """Without the dimensions that it was expanded in."""
    return value[tuple(slice(0, 1) if step == 0 else slice(None) for step in value.stride())]


def _own(value: torch.Tensor) -> torch.Tensor:
    """A copy, expanded in the same dimensions."""
    return _dense(value).clone().expand(value.shape)


def _alike(own: Any, given: Any) -> bool:
    """Whether a value may stand in the place of the one that was captured."""
    if not isinstance(own, torch.Tensor) or not isinstance(given, torch.Tensor):
        return own is given or (type(own) is type(given) and _equal(own, given))
    return (
        own.shape == given.shape
        and own.dtype == given.dtype
        and own.device == given.device
        and [s == 0 for s in own.stride()] == [s == 0 for s in given.stride()]
    )


def _equal(own: Any, given: Any) -> bool:
    try:
        return bool(own == given)
    except ValueError:  # arrays
        return False
