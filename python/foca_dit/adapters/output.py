"""What a model returns, so that a forecast can be returned in the same shape."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch


class OutputShape:
    """Remembers how a model wraps its one tensor: bare, in a tuple, or in an output class."""

    def __init__(self) -> None:
        self._wrap: Any = None

    def note(self, output: Any) -> torch.Tensor:
        """The one tensor in a model's output.

        Raises:
            TypeError: the model returns more than one, or none.
        """
        values: tuple[Any, ...]
        wrap: Any
        if isinstance(output, torch.Tensor):
            values, wrap = (output,), None
        elif isinstance(output, (tuple, list)):
            values, wrap = tuple(output), type(output)
        else:
            present = {k: v for k, v in _fields(output).items() if v is not None}
            values, wrap = tuple(present.values()), (type(output), tuple(present))
        if len(values) != 1 or not isinstance(values[0], torch.Tensor):
            got = ", ".join(type(value).__name__ for value in values)
            raise TypeError(
                f"foca_dit: granularity 'output': expected a model that returns one tensor, got "
                f"{type(output).__name__} of ({got})"
            )
        if not (wrap is tuple and isinstance(self._wrap, tuple)):
            self._wrap = wrap  # an output class, once seen, is remembered
        return values[0]

    def rebuild(self, value: torch.Tensor, arguments: dict[str, Any]) -> Any:
        """A forecast as the model would return it, if called with these arguments."""
        if arguments.get("return_dict") is False:
            return (value,)
        if self._wrap is None:
            return value
        if isinstance(self._wrap, tuple):
            cls, (name,) = self._wrap
            return cls(**{name: value})
        return self._wrap([value])


def _fields(output: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(output):
        return {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    return {"": output}
