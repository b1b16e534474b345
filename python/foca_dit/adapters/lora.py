"""What of a LoRA is at work in a call. Switched between two steps, it makes another function of the
model, to which the features of the steps before do not belong.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

_BITS = 20  # what float32 holds, in which conditions are compared


class ActiveLoRA:
    """The LoRA of a model, as a condition of its calls (`foca_dit.trajectory`)."""

    def __init__(self) -> None:
        self._loaded: list[Any] = []  # kept, so that no other has their identity
        self._layers: list[dict[str, Any]] = []  # attributes: this is asked at every step
        self._seen: list[Any] = []
        self._found: list[torch.Tensor] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> ActiveLoRA:
        copied: ActiveLoRA = memo.setdefault(id(self), ActiveLoRA())
        return copied

    def conditions(self, model: torch.nn.Module, arguments: dict[str, Any]) -> list[torch.Tensor]:
        """A tensor that is another one where the layers' adapters or scales are; none: no LoRA."""
        configs = model.__dict__.get("peft_config")
        if not configs:
            self._loaded, self._layers, self._seen = [], [], []
            return []
        if [*map(id, configs.values())] != [*map(id, self._loaded)]:
            self._loaded = list(configs.values())
            self._layers = [vars(module) for module in model.modules() if _is_tuned(module)]
        scale, layers = _scale(arguments), [_state(layer) for layer in self._layers]
        if [scale, *layers] != self._seen:
            number = hash((scale, *map(_rounded, layers)))
            parts = [(number >> shift) % 2**_BITS for shift in (0, _BITS, 2 * _BITS)]
            self._seen, self._found = [scale, *layers], [torch.tensor(parts)]
        return self._found


def _is_tuned(module: torch.nn.Module) -> bool:
    return {"scaling", "_active_adapter", "merged_adapters"} <= vars(module).keys()


def _state(layer: dict[str, Any]) -> tuple[Any, ...]:
    """What a layer of peft adds, and how much of it."""
    return (
        layer["_disable_adapters"],
        layer["_active_adapter"],
        *layer["merged_adapters"],
        *layer["scaling"].items(),
    )


def _rounded(state: tuple[Any, ...]) -> Hashable:
    """The same, without what diffusers leaves of a scale that it sets and takes back."""
    disabled, active, *rest = state
    added = [active] if isinstance(active, str) else active
    kept = [
        (part[0], round(part[1], 6)) if isinstance(part, tuple) else part
        for part in rest
        if not isinstance(part, tuple) or (part[0] in added and not disabled)
    ]
    return (*([] if disabled else added), *kept)


def _scale(arguments: dict[str, Any]) -> Hashable:
    """The scale that a pipeline passes on to diffusers, for all of them."""
    given = (value for name, value in arguments.items() if name.endswith("attention_kwargs"))
    return tuple(value.get("scale", 1.0) for value in given if isinstance(value, dict))
