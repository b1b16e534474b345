"""Puts the hooks of one granularity into a model, finds them, and takes them out again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from foca_dit.adapters import registry
from foca_dit.adapters.block_hooks import BlockHook, CaptureHook, FeatureHook
from foca_dit.adapters.hooks import ModelHook, find_hook
from foca_dit.adapters.layout import Shared, device_of, lay_out
from foca_dit.adapters.spec import ModelSpec, SharedGates
from foca_dit.clock import NoiseLevels
from foca_dit.schedules import StepMask
from foca_dit.state import CacheState


def install(
    model: torch.nn.Module,
    spec: ModelSpec,
    granularity: str,
    state: CacheState,
    levels: NoiseLevels,
    stage_of: Callable[[torch.nn.Module], object] = device_of,
    pipeline: Any = None,
) -> None:
    """Puts the hooks of one granularity into a model.

    Args:
        model, spec: the model and its table.
        granularity: one of the spec's.
        state: the state that the model's calls use outside any `cache_scope`.
        levels: what the model's timestep means.
        stage_of: what the blocks have in common that one launch serves: their device.
        pipeline: whose `.scheduler` the cache follows; None: the levels stay.
    """
    _keep_out_of_graphs()
    # A mask names single features: sums over them would not do.
    mask = schedule if isinstance(schedule := state.settings.schedule, StepMask) else None
    layout = lay_out(model, spec, granularity, mask is None, stage_of)
    if mask is not None:
        mask.check("apply_foca_cache", len(layout.slots), granularity)
    root = ModelHook(spec, granularity, layout, state)
    root.belong_to(pipeline)
    hooks: list[tuple[torch.nn.Module, registry.Hook]] = [(model, root)]
    for located in layout.located:
        hook = FeatureHook(root.call, located, layout.accumulated)
        hooks.append((located.module, hook))
        root.placed.append((located, located.module))
    if granularity != "output":
        for position, (_, block) in enumerate(layout.blocks):
            hooks.append((block, BlockHook(root.call, layout, position, granularity == "stack")))
    if granularity == "module":
        for path in _captured(spec):
            shared = Shared(model, path)
            hooks.append((shared.module, CaptureHook(root.call, path)))
            root.placed.append((shared, shared.module))
    state.attach(model, granularity, root.features, levels)
    registry.register(model, hooks)


def uninstall(model: torch.nn.Module) -> None:
    """Takes the hooks out again, and the registries that stand empty then."""
    if (hook := find_hook(model)) is not None:
        for state in hook.states:  # the histories go now, not when the garbage collector comes by
            state.reset()
    registry.remove(model)


@functools.cache
def _keep_out_of_graphs() -> None:
    """Tells torch.compile to run this package's own code as it stands, and only that.

    Steps and histories change from call to call: traced, they would be frozen into graphs or
    recompiled. What hooks call, the model's modules, is still compiled.
    """
    from torch._dynamo import trace_rules

    trace_rules.add("foca_dit")


def _captured(spec: ModelSpec) -> list[str]:
    """The modulations outside the blocks that gates are read from."""
    gates = [group.gates for group in spec.groups]
    paths = [g.module for g in gates if isinstance(g, SharedGates) and g.module]
    return list(dict.fromkeys(paths))
