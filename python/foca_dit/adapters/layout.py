"""Where a model's features end up: which histories there are, and what each block has to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
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


@dataclass(frozen=True)
class Shared:
    """A modulation outside the blocks, found in a model."""

    root: torch.nn.Module
    path: str

    @property
    def module(self) -> torch.nn.Module:
        return self.root.get_submodule(self.path)


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
    return [(group, block) for group in spec.groups for block in _listed(model, group.path)]


def _listed(model: torch.nn.Module, path: str) -> list[torch.nn.Module]:
    """The blocks of one list, each as often as it stands there, without torch.compile's wrapper."""
    modules = model.get_submodule(path)._modules.values()
    return [uncompiled(module) for module in modules if module is not None]


def uncompiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside what `torch.compile` returns."""
    original = getattr(module, "_orig_mod", None)
    return original if isinstance(original, torch.nn.Module) else module


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
    if granularity != "output":
        _check_distinct(model, [block for _, block in layout.blocks], "block")
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
    _check_distinct(model, [located.module for located in layout.located], "cached module")
    return layout


def _check_distinct(model: torch.nn.Module, modules: list[torch.nn.Module], what: str) -> None:
    if len(set(map(id, modules))) < len(modules):
        raise ValueError(
            f"foca_dit: {type(model).__name__}: expected every {what} in one place, got one that "
            "stands in several, whose calls could not be told apart: cache at granularity='output'"
        )


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


def _has_parameter(block: torch.nn.Module, path: str) -> bool:
    try:
        return isinstance(block.get_parameter(path), torch.nn.Parameter)
    except AttributeError:
        return False


def check(model: torch.nn.Module, spec: ModelSpec) -> None:
    """Checks that a table fits a model.

    Raises:
        ValueError: it names a list, module, parameter or argument that is not there.
    """
    for what, why in _misfits(model, spec):
        raise ValueError(f"foca_dit: the adapter of {type(model).__name__} {what}: {why}")


def _misfits(model: torch.nn.Module, spec: ModelSpec) -> Iterator[tuple[str, str]]:
    """What a table says of a model, and why it is not so."""
    given = inspect.signature(type(model).forward).parameters
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in given.values()):
        for name in {spec.sample, spec.timestep} - set(given):
            yield f"names the model's argument '{name}'", "its forward does not take it"
    first: set[str] = set()
    for group in spec.groups:
        blocks = _listed(model, group.path) if _has(model, group.path) else []
        if not blocks:
            yield f"names the blocks '{group.path}'", "the model has no such list"
        yield from _misfits_of_modules(model, group, blocks)
        taken = set(inspect.signature(type(blocks[0]).forward).parameters)
        first = first or taken  # a skipped step computes all gates in the first block
        for name in (group.hidden, *group.returns, *_read(group)):
            if name not in (taken & first if name in _read(group) else taken):
                lacks = type(blocks[0]).__name__ if name not in taken else "the model's first block"
                what = f"names the argument '{name}' of the blocks of '{group.path}'"
                yield what, f"{lacks} does not take it"


def _misfits_of_modules(
    model: torch.nn.Module, group: BlockGroup, blocks: list[torch.nn.Module]
) -> Iterator[tuple[str, str]]:
    gates = group.gates
    for feature in group.features:
        for name in filter(None, (feature.module, feature.modulation)):
            if not (feature.optional or any(_has(block, name) for block in blocks)):
                yield (
                    f"names the module '{name}' in the blocks of '{group.path}'",
                    "no block has it",
                )
        if isinstance(gates, LinearGates) and feature.chunk is not None and not feature.modulation:
            yield f"gives '{feature.module}' a chunk of a Linear", "it names no modulation"
    if isinstance(gates, SharedGates):
        if gates.module and not _has(model, gates.module):
            yield f"names the modulation '{gates.module}'", "the model has no such module"
        if gates.table and not any(_has_parameter(block, gates.table) for block in blocks):
            what = f"names the table '{gates.table}' in the blocks of '{group.path}'"
            yield what, "no block has such a parameter"


def _read(group: BlockGroup) -> list[str]:
    """The block arguments that a group's gates are read from."""
    gates = group.gates
    if isinstance(gates, LinearGates):
        return [gates.conditioning] if isinstance(gates.conditioning, str) else []
    return [gates.argument] if gates is not None and gates.argument else []
