"""What a model returns, so that a forecast can be returned in the same shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from foca_dit.adapters.spec import Arguments, as_batch

Wrap = Callable[[Sequence[Any]], Any]
"""From the tensors of an output to the output."""


class OutputShape:
    """Remembers how a model wraps its tensors: bare, in a tuple, or in an output class.

    Several tensors, as a model of video and sound returns them, are cached as one, end to end. A
    list of one tensor per sample in the place of a tensor counts as the batch that it is.
    """

    def __init__(self) -> None:
        self._wraps: dict[bool, Wrap] = {}  # by `return_dict`
        self._is_listed = False
        self._shapes: list[torch.Size] = []

    def note(self, output: Any, arguments: Arguments) -> torch.Tensor:
        """All that the output of a call with these arguments holds, in one tensor.

        Raises:
            TypeError: it holds something else than tensors of one dtype and device, or none.
        """
        values, wrap = _taken_apart(output)
        self._is_listed = len(values) == 1 and isinstance(values[0], list)
        if self._is_listed:
            values = [as_batch(values[0])]
        kinds = {(v.dtype, v.device) if isinstance(v, torch.Tensor) else type(v) for v in values}
        if len(kinds) != 1 or not all(isinstance(value, torch.Tensor) for value in values):
            got = ", ".join(str(getattr(value, "dtype", type(value).__name__)) for value in values)
            raise TypeError(
                "foca_dit: granularity 'output': expected a model that returns a tensor, or "
                f"several of one dtype on one device, got {type(output).__name__} of ({got})"
            )
        self._wraps[arguments.get("return_dict", True)] = wrap
        self._shapes = [value.shape for value in values]
        if len(values) == 1:
            only: torch.Tensor = values[0]
            return only
        return torch.cat([value.flatten() for value in values])

    def rebuild(self, value: torch.Tensor, arguments: Arguments) -> Any:
        """A forecast as the model would return it, if called with these arguments.

        Raises:
            TypeError: `return_dict` is not what it was, and the model's own class not known.
        """
        parts: list[Any] = [value]
        if self._is_listed:
            parts = [list(value.unbind())]
        elif len(self._shapes) > 1:
            flat = value.split([shape.numel() for shape in self._shapes])
            parts = [part.view(shape) for part, shape in zip(flat, self._shapes, strict=True)]
        as_class = arguments.get("return_dict", True)
        if as_class in self._wraps:
            return self._wraps[as_class](parts)
        if not as_class:
            return tuple(parts)
        if len(parts) > 1:
            raise TypeError(
                "foca_dit: granularity 'output': expected the `return_dict=False` of the computed "
                "steps, got True: what class this model returns is not known"
            )
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=parts[0])


def _taken_apart(output: Any) -> tuple[list[Any], Wrap]:
    """What an output holds, but for None, and how to put such values in their places again."""
    cls = type(output)  # not the output itself: the wraps outlive it
    if isinstance(output, torch.Tensor):
        return [output], lambda parts: parts[0]
    if isinstance(output, (tuple, list)):
        given = [value is not None for value in output]
        make = getattr(cls, "_make", cls)  # named tuples take their fields one by one

        def filled(parts: Sequence[Any]) -> Any:
            left = iter(parts)
            return make([next(left) if is_given else None for is_given in given])

        return [value for value in output if value is not None], filled
    fields = dataclasses.fields(output) if dataclasses.is_dataclass(output) else ()
    values = {f.name: v for f in fields if (v := getattr(output, f.name)) is not None}
    names = tuple(values)
    return list(values.values()), lambda parts: cls(**dict(zip(names, parts, strict=True)))
