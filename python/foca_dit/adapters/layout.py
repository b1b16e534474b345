"""Where a model's features end up: which histories there are, and what each block has to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from foca_dit.adapters.gates import Slot
from foca_dit.adapters.spec import BlockGroup, Feature, LinearGates, ModelSpec, SharedGates


@dataclass(frozen=True)
class Destination:
    """A history that a feature is folded into.

    Attributes:
        slot: index of the history.
        by_table: whether the feature is first multiplied by its row of the block's table.
    """

    slot: int
    by_table: bool = False


@dataclass(frozen=True)
class Located:
    """A feature of the table, found in a model."""

    group: BlockGroup
    block: torch.nn.Module
    feature: Feature
    targets: tuple[Destination, ...]

    @property
    def module(self) -> torch.nn.Module:
        return self.block.get_submodule(self.feature.module)


@dataclass
class Layout:
    """The histories of one granularity of one model.

    Attributes:
        blocks: all blocks with their groups, in the order in which they run.
        slots: the histories.
        located: the cached modules (granularity module).
        stages: for the first block of every stage, the histories that it adds in a skipped step.
            A stage is the blocks of one device: a model split over devices adds on each.
        accumulated: whether a history is a sum over features, committed when the model returns.
        new_stream: as in the spec.
    """

    blocks: list[tuple[BlockGroup, torch.nn.Module]]
    slots: list[Slot] = field(default_factory=list)
    located: list[Located] = field(default_factory=list)
    stages: dict[int, list[int]] = field(default_factory=dict)
    accumulated: bool = False
    new_stream: bool = False


def blocks_of(model: torch.nn.Module, spec: ModelSpec) -> list[tuple[BlockGroup, torch.nn.Module]]:
    """All blocks of a model with their groups, in the order in which they run."""
    return [
        (group, block)
        for group in spec.groups
        for block in model.get_submodule(group.path).children()
    ]


def device_of(module: torch.nn.Module) -> torch.device | None:
    """The device of a module's parameters (of the first of them)."""
    parameter = next(module.parameters(), None)
    return None if parameter is None else parameter.device


def lay_out(
    model: torch.nn.Module,
    spec: ModelSpec,
    granularity: str,
    accumulate: bool,
    stage_of: Callable[[torch.nn.Module], object] = device_of,
) -> Layout:
    """Finds the features of a model and gives each its history.

    Args:
        model, spec: the model and its table.
        granularity: one of the spec's.
        accumulate: keep sums over features where gates are shared (docs/method.md, section 10).
        stage_of: what the blocks of one stage have in common.

    Raises:
        ValueError: the table does not fit the model.
    """
    check(model, spec)
    layout = Layout(blocks_of(model, spec), new_stream=spec.new_stream)
    if granularity != "module":
        layout.slots = [Slot(BlockGroup("", "", ()))]
        layout.stages = {0: [0]}
        return layout
    layout.accumulated = accumulate and spec.is_shared
    known: dict[object, int] = {}
    stage, last = 0, object()
    for position, (group, block) in enumerate(layout.blocks):
        if position == 0 or stage_of(block) != last:
            stage, last = position, stage_of(block)
            layout.stages[stage] = []
        for feature in group.features:
            if not _has(block, feature.module):
                continue
            targets = []
            for key, slot, by_table in _keys(layout, group, block, feature):
                if (stage, key) not in known:
                    known[stage, key] = len(layout.slots)
                    layout.stages[stage].append(len(layout.slots))
                    layout.slots.append(slot)
                targets.append(Destination(known[stage, key], by_table))
            layout.located.append(Located(group, block, feature, tuple(targets)))
    return layout


def _keys(
    layout: Layout, group: BlockGroup, block: torch.nn.Module, feature: Feature
) -> Sequence[tuple[object, Slot, bool]]:
    """Which histories a feature is folded into: (what names one, the history, by table)."""
    gates = group.gates
    if not layout.accumulated:
        slot = Slot(group, block, feature.chunk, feature.modulation)
        return [(len(layout.slots), slot, False)]
    assert isinstance(gates, SharedGates)
    # sum_l (s_l + t) F_l = sum_l s_l F_l + t sum_l F_l: the first sum is ungated.
    own = [("own", Slot(group), True)]
    if feature.chunk is None:
        return [("own", Slot(group), False)]
    return [
        *(own if gates.table else []),
        ((gates, feature.chunk), Slot(group, None, feature.chunk), False),
    ]


def _has(block: torch.nn.Module, path: str) -> bool:
    try:
        return isinstance(block.get_submodule(path), torch.nn.Module)
    except AttributeError:
        return False


def check(model: torch.nn.Module, spec: ModelSpec) -> None:
    """Checks that a table fits a model.

    Raises:
        ValueError: it names a list, module or argument that is not there.
    """
    first: set[str] = set()
    for group in spec.groups:
        blocks = list(model.get_submodule(group.path).children()) if _has(model, group.path) else []
        if not blocks:
            raise _misfit(model, f"names the blocks '{group.path}'", "the model has no such list")
        for feature in group.features:
            for name in filter(None, (feature.module, feature.modulation)):
                if not (feature.optional or any(_has(block, name) for block in blocks)):
                    what = f"names the module '{name}' in the blocks of '{group.path}'"
                    raise _misfit(model, what, "no block has it")
        taken = set(inspect.signature(type(blocks[0]).forward).parameters)
        first = first or taken  # a skipped step computes all gates in the first block
        for name in (group.hidden, *group.returns, *_read(group)):
            if name not in (taken & first if name in _read(group) else taken):
                what = f"names the argument '{name}' of the blocks of '{group.path}'"
                lacks = type(blocks[0]).__name__ if name not in taken else "the model's first block"
                raise _misfit(model, what, f"{lacks} does not take it")


def _read(group: BlockGroup) -> list[str]:
    """The block arguments that a group's gates are read from."""
    gates = group.gates
    if isinstance(gates, LinearGates):
        return [gates.conditioning] if isinstance(gates.conditioning, str) else []
    return [gates.argument] if gates is not None and gates.argument else []


def _misfit(model: torch.nn.Module, what: str, why: str) -> ValueError:
    return ValueError(f"foca_dit: the adapter of {type(model).__name__} {what}: {why}")
