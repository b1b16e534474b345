"""What a model returns, so that a forecast can be returned in the same shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from foca_dit.adapters.spec import Arguments, as_batch


class OutputShape:
    """Remembers how a model wraps its one tensor: bare, in a tuple, or in an output class.

    A list of one tensor per sample in the place of the tensor counts as the batch that it is.
    """

    def __init__(self) -> None:
        self._wraps: dict[bool, Any] = {}  # by `return_dict`
        self._is_listed = False

    def note(self, output: Any, arguments: Arguments) -> torch.Tensor:
        """The one tensor in the output of a call with these arguments.

        Raises:
            TypeError: the model returns more than one, or none, or a list of several shapes.
        """
        cls = type(output)  # not the output itself: the wraps outlive it
        values: list[Any]
        wrap: Callable[[torch.Tensor], Any]
        if isinstance(output, torch.Tensor):
            values, wrap = [output], _bare
        elif isinstance(output, (tuple, list)):
            make = getattr(cls, "_make", cls)  # named tuples take their fields one by one
            values, wrap = list(output), lambda value: make([value])
        else:
            names = [f.name for f in _fields(output) if getattr(output, f.name) is not None]
            values = [getattr(output, name) for name in names]
            wrap = lambda value: cls(**{names[0]: value})  # noqa: E731
        self._is_listed = len(values) == 1 and isinstance(values[0], list)
        if self._is_listed:
            values = [as_batch(values[0])]
        if len(values) != 1 or not isinstance(values[0], torch.Tensor):
            got = ", ".join(type(value).__name__ for value in values)
            raise TypeError(
                "foca_dit: granularity 'output': expected a model that returns one tensor, got "
                f"{cls.__name__} of ({got})"
            )
        self._wraps[arguments.get("return_dict", True)] = wrap
        return values[0]

    def rebuild(self, value: torch.Tensor, arguments: Arguments) -> Any:
        """A forecast as the model would return it, if called with these arguments."""
        sample: Any = list(value.unbind()) if self._is_listed else value
        as_class = arguments.get("return_dict", True)
        if as_class in self._wraps:
            return self._wraps[as_class](sample)
        if not as_class:
            return (sample,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=sample)


def _bare(value: torch.Tensor) -> torch.Tensor:
    return value


def _fields(output: Any) -> tuple[Any, ...]:
    return dataclasses.fields(output) if dataclasses.is_dataclass(output) else ()
