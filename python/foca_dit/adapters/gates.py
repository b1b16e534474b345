"""Gates of a skipped step, computed from the conditioning alone: no block runs.

Only the gate rows of a modulation Linear are computed, not its shifts and scales, and conditioning
that all blocks share is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from foca_dit.adapters.spec import Arguments, BlockGroup, LinearGates, SharedGates
from foca_dit.ahead import Values
from foca_dit.branch import Branch
from foca_dit.timetable import HALF


@dataclass(frozen=True)
class Slot:
    """One history, and where the gate comes from that its forecast is multiplied by.

    Attributes:
        group: the block group that it belongs to.
        block: the block that has the modulation; None: only the shared part is the gate.
        chunk, modulation: as in `Feature`; chunk None: ungated.
    """

    group: BlockGroup
    block: torch.nn.Module | None = None
    chunk: int | None = None
    modulation: str = ""


def gates_of(
    slots: Sequence[Slot],
    x: torch.Tensor,
    block: torch.nn.Module,
    arguments: Arguments,
    captured: Mapping[str, Any],
) -> list[torch.Tensor]:
    """The gates of the slots, all of one shape and dtype; empty if none is gated.

    Args:
        slots: histories in the order in which they are added.
        x: the stream [B, S, D]; gates come in its dtype or in float32, on its device.
        block, arguments: the block that is being called, and its arguments.
        captured: outputs of the modules that `SharedGates.module` names.

    Returns:
        One gate per slot, [R, 1, D] with R rows of conditioning, or [B, S, D] if per token.
    """
    found: dict[int, torch.Tensor] = {}
    linear: dict[tuple[int, str], list[int]] = {}
    shared: dict[SharedGates, torch.Tensor] = {}
    conditionings: dict[LinearGates, torch.Tensor] = {}
    extended: dict[LinearGates, Arguments] = {}
    width = x.shape[-1]
    for index, slot in enumerate(slots):
        gates = slot.group.gates
        if slot.chunk is None or gates is None:
            continue
        if isinstance(gates, LinearGates):
            linear.setdefault((id(slot.block), slot.modulation), []).append(index)
            continue
        if gates not in shared:
            source = captured[gates.module] if gates.module else arguments[gates.argument]
            shared[gates] = _chunks(source, width)
        found[index] = shared[gates][:, :, slot.chunk].to(x.device).float()
        if gates.table and slot.block is not None:
            found[index] = found[index] + table_row(slot.block, gates, slot.chunk, x)
    for (_, modulation), indices in linear.items():
        slot = slots[indices[0]]
        gates, owner = slot.group.gates, slot.block
        assert isinstance(gates, LinearGates)
        assert owner is not None
        chunks = [c for i in indices if (c := slots[i].chunk) is not None]
        with _weights_of(owner):
            if gates not in extended:
                common: Arguments = gates.common(owner, arguments) if gates.common else {}
                extended[gates] = {**arguments, **common}
            if gates.per_block or gates not in conditionings:
                conditionings[gates] = _conditioning(
                    gates, owner if gates.per_block else block, extended[gates]
                )
            rows = linear_rows(owner.get_submodule(modulation), conditionings[gates], chunks, width)
        found.update(zip(indices, rows, strict=True))
    for gates, given in extended.items():
        if (taken := given.get("rows")) is not None:
            own = [index for index in found if slots[index].group.gates == gates]
            every = torch.stack([found[index] for index in own]).index_select(1, taken)
            found.update(zip(own, every.unbind(), strict=True))
    return _unified(found, len(slots), x)


def gates_ahead(
    branch: Branch | None,
    slots: Sequence[Slot],
    x: torch.Tensor,
    block: torch.nn.Module,
    arguments: Arguments,
    captured: Mapping[str, Any],
) -> Values:
    """As `gates_of`, together with those of the next skipped steps where a table says how."""

    def compute(timesteps: Sequence[float]) -> Sequence[Values]:
        several = {"timesteps": torch.tensor(timesteps, dtype=timestep.dtype, device=x.device)}
        gates = gates_of(slots, x, block, {**arguments, **several}, captured)
        parts = [gate.chunk(len(timesteps)) for gate in gates]
        return [[part[step] for part in parts] for step in range(len(timesteps))]

    group, found = slots[0].group, None
    names = group.gates.ahead if isinstance(group.gates, LinearGates) else ()
    if branch is not None and names and not block.training:
        timestep, given = arguments["timestep"], [arguments[name] for name in names]
        if timestep.dtype not in HALF and all(slot.group is group for slot in slots):
            found = branch.ahead.values(id(block), given, branch.upcoming, compute)
    return gates_of(slots, x, block, arguments, captured) if found is None else found


def linear_rows(
    linear: torch.nn.Module, conditioning: torch.Tensor, chunks: Sequence[int], width: int
) -> list[torch.Tensor]:
    """Some chunks of the rows of a Linear, applied to the conditioning [R, C]: [R, 1, D] each.

    LoRA, quantised, cast or hooked layers know best themselves how to be evaluated, and are
    evaluated whole.
    """
    weight = linear.weight
    if isinstance(weight, torch.Tensor) and weight.device.type != "meta":
        conditioning = conditioning.to(weight.device)  # split or offloaded models
    if not _is_plain(linear, conditioning):
        whole = linear(conditioning)
        return [whole[:, c * width : (c + 1) * width].contiguous().unsqueeze(1) for c in chunks]
    assert isinstance(linear, torch.nn.Linear)
    by = chunks[1] - chunks[0] if len(chunks) > 1 else 1
    spaced = by > 0 and list(chunks) == list(range(chunks[0], chunks[-1] + 1, by))
    # One product over a strided view of the weight, but not of half floats on the CPU: in bfloat16
    # it took 34 ms for 2.8 ms of a product per chunk, in float32 3.2 ms for 5.5 ms (2 chunks of
    # 3072 x 3072, 1 row, cold; AMD EPYC, torch 2.13, 2026-11-21, benchmarks/gates.py).
    batched = weight.device.type != "cpu" or weight.dtype == torch.float32
    if spaced and len(chunks) > 1 and batched:
        return _rows_at_once(linear, conditioning, slice(chunks[0], chunks[-1] + 1, by), width)
    return [_rows(linear, conditioning, slice(c * width, (c + 1) * width)) for c in chunks]


@contextmanager
def _weights_of(block: torch.nn.Module) -> Iterator[None]:
    """Fetches the weights of a block that diffusers keeps on disk: it does not run, yet is read."""
    hooks: Any = block.__dict__.get("_diffusers_hook")
    offloading = None if hooks is None else hooks.get_hook("group_offloading")
    if offloading is None or not offloading.group.offload_to_disk_path:
        yield
        return
    offloading.group.onload_()
    try:
        yield
    finally:
        offloading.group.offload_()


def table_row(
    block: torch.nn.Module, gates: SharedGates, chunk: int, like: torch.Tensor
) -> torch.Tensor:
    """A block's own part of one gate, [D] in float32."""
    return (
        block.get_parameter(gates.table).reshape(-1, like.shape[-1])[chunk].to(like.device).float()
    )


def _conditioning(gates: LinearGates, block: torch.nn.Module, arguments: Arguments) -> torch.Tensor:
    if isinstance(gates.conditioning, str):
        return F.silu(arguments[gates.conditioning])
    return gates.conditioning(block, arguments)


def _chunks(source: torch.Tensor, width: int) -> torch.Tensor:
    """A shared modulation as [B, T, n, D], T = 1 or S tokens: a view."""
    per_token = source.dim() == (4 if source.shape[-1] == width else 3)
    return source.reshape(source.shape[0], source.shape[1] if per_token else 1, -1, width)


def _is_plain(linear: torch.nn.Module, conditioning: torch.Tensor) -> bool:
    """Whether a module is a Linear and nothing else: its rows can be taken apart."""
    return (
        type(linear) is torch.nn.Linear
        and type(linear.weight) is torch.nn.Parameter
        and linear.weight.dtype == conditioning.dtype
        and linear.weight.device == conditioning.device
        and is_unhooked(linear)
    )


def is_unhooked(module: torch.nn.Module) -> bool:
    """Whether a call of the module runs its class's `forward` and nothing else."""
    return (
        "forward" not in module.__dict__
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def _rows(linear: torch.nn.Linear, conditioning: torch.Tensor, rows: slice) -> torch.Tensor:
    bias = None if linear.bias is None else linear.bias[rows]
    return F.linear(conditioning, linear.weight[rows], bias).unsqueeze(1)


def _rows_at_once(
    linear: torch.nn.Linear, conditioning: torch.Tensor, chunks: slice, width: int
) -> list[torch.Tensor]:
    """Evenly spaced chunks in one product over a strided view of the weight."""
    weight = linear.weight.unflatten(0, (-1, width))[chunks].transpose(1, 2)  # [n, C, D]
    if linear.bias is None:
        rows = torch.matmul(conditioning, weight)
    else:
        bias = linear.bias.unflatten(0, (-1, 1, width))[chunks]
        rows = torch.baddbmm(bias, conditioning.expand(len(weight), -1, -1), weight)
    return list(rows.unsqueeze(2).unbind())


def _unified(found: Mapping[int, torch.Tensor], count: int, x: torch.Tensor) -> list[torch.Tensor]:
    """Gates of one shape and dtype, ones for the ungated; empty if nothing is gated."""
    if not found:
        return []
    shapes, dtypes = {gate.shape for gate in found.values()}, {g.dtype for g in found.values()}
    shape = shapes.pop() if len(shapes) == 1 else torch.broadcast_shapes(*shapes)
    dtype = x.dtype if dtypes == {x.dtype} else torch.float32
    ones = torch.ones(shape, dtype=dtype, device=x.device) if len(found) < count else None
    gates = []
    for index in range(count):
        gate = found.get(index, ones)
        assert gate is not None
        if gate.shape != shape or gate.dtype != dtype or gate.device != x.device:
            gate = gate.to(x.device, dtype).expand(shape)
        gates.append(gate.contiguous())
    return gates
