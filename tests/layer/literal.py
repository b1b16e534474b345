"""An oracle that shares no code with the cache: the paper's recursion around single modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class LiteralFoCa:
    """The recursion of one tensor in float64: F_k, F_{k-1} are the last two values used."""

    def __init__(self) -> None:
        self.anchors: list[tuple[int, torch.Tensor]] = []
        self.used: list[torch.Tensor] = []

    def computed(self, step: int, value: torch.Tensor) -> torch.Tensor:
        self.anchors.append((step, value.double()))
        self.used.append(value.double())
        return value

    def forecast(self, dtype: torch.dtype) -> torch.Tensor:
        (before, f_before), (last, f_last) = self.anchors[-2:]
        d_anchor = (f_last - f_before) / (last - before)
        f_k, f_km1 = self.used[-1], self.used[-2]
        d_k = f_k - f_km1
        predicted = 4 / 3 * f_k - 1 / 3 * f_km1 + 2 / 3 * d_k
        d_next = 3 / 2 * predicted - 2 * f_k + 1 / 2 * f_km1
        corrected = f_k + (d_anchor + d_next) / 2
        self.used.append(corrected)
        return corrected.to(dtype)


class LiteralModule:
    """A module whose output is forecast, entry by entry, at every step that is not a full one.

    Every step calls it once for each guidance branch.
    """

    def __init__(
        self, module: torch.nn.Module, full_steps: Sequence[int], branches: int = 1
    ) -> None:
        self.run: Callable[..., Any] = module.forward
        self.full_steps, self.calls = full_steps, 0
        self.branches: list[list[LiteralFoCa | None]] = [[] for _ in range(branches)]
        self.dtype = torch.float32
        self.is_tuple = False
        module.forward = self.forward  # type: ignore[method-assign]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        step, branch = divmod(self.calls, len(self.branches))
        self.calls += 1
        entries = self.branches[branch]
        if step not in self.full_steps:
            values = [None if entry is None else entry.forecast(self.dtype) for entry in entries]
            return tuple(values) if self.is_tuple else values[0]
        output = self.run(*args, **kwargs)
        self.is_tuple = isinstance(output, tuple)
        values = list(output) if self.is_tuple else [output]
        if not entries:
            entries += [None if value is None else LiteralFoCa() for value in values]
            self.dtype = values[0].dtype
        for entry, value in zip(entries, values, strict=True):
            if entry is not None:
                entry.computed(step, value)
        return output


def wrap(
    model: torch.nn.Module,
    wrapped: dict[str, Sequence[str]],
    full_steps: Sequence[int],
    branches: int = 1,
) -> int:
    """Puts the oracle around modules of every block that has them; returns how many."""
    count = 0
    for path, names in wrapped.items():
        for block in model.get_submodule(path).children():
            for name in dict.fromkeys(names):  # named twice: called twice a step
                if isinstance(getattr(block, name, None), torch.nn.Module):
                    calls = branches * names.count(name)
                    LiteralModule(block.get_submodule(name), full_steps, calls)
                    count += 1
    return count
