"""Where a model's features end up: which histories there are, and what each block has to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from foca_dit.adapters.gates import Slot
from foca_dit.adapters.spec import BlockGroup, Feature, ModelSpec, SharedGates


@dataclass(frozen=True)
class Target:
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
    targets: tuple[Target, ...]

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
    """

    blocks: list[tuple[BlockGroup, torch.nn.Module]]
    slots: list[Slot] = field(default_factory=list)
    located: list[Located] = field(default_factory=list)
    stages: dict[int, list[int]] = field(default_factory=dict)
    accumulated: bool = False


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
        ValueError: the table names a module that no block has.
    """
    layout = Layout(blocks_of(model, spec))
    if granularity != "module":
        layout.slots = [Slot(BlockGroup("", "", ()))]
        layout.stages = {0: [0]}
        return layout
    layout.accumulated = accumulate and spec.is_shared
    known: dict[object, int] = {}
    stage, last = 0, object()
    seen: set[tuple[str, str]] = set()
    for position, (group, block) in enumerate(layout.blocks):
        if position == 0 or stage_of(block) != last:
            stage, last = position, stage_of(block)
            layout.stages[stage] = []
        for feature in group.features:
            if not _has(block, feature.module):
                continue
            seen.add((group.path, feature.module))
            targets = []
            for key, slot, by_table in _keys(layout, group, block, feature):
                if (stage, key) not in known:
                    known[stage, key] = len(layout.slots)
                    layout.stages[stage].append(len(layout.slots))
                    layout.slots.append(slot)
                targets.append(Target(known[stage, key], by_table))
            layout.located.append(Located(group, block, feature, tuple(targets)))
    _check_found(model, spec, seen)
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


def _check_found(model: torch.nn.Module, spec: ModelSpec, seen: set[tuple[str, str]]) -> None:
    for group in spec.groups:
        for feature in group.features:
            if not feature.optional and (group.path, feature.module) not in seen:
                raise ValueError(
                    f"foca_dit: the adapter of {type(model).__name__} names the module "
                    f"'{feature.module}' in the blocks of '{group.path}': no block has it"
                )
