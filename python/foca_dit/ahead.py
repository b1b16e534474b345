"""What skipped steps need beside their forecasts, computed for several of them at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch

MOST = 8  # steps at once: bounds the memory, and what an interrupted generation computes in vain

Values = Sequence[torch.Tensor]


class Ahead:
    """Values that depend on the timestep alone, for the skipped steps up to the next full one.

    They are computed at the first of these steps, and forgotten at the next full one: like the
    features, they are of the model as it was at the last full step.
    """

    def __init__(self) -> None:
        self._given: list[_Seen] = []
        self._known: dict[tuple[Hashable, float], Values] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(value.nbytes for values in list(self._known.values()) for value in values)

    def forget(self) -> None:
        """Forgets everything: features are being computed."""
        self._given, self._known = [], {}

    def values(
        self,
        of: Hashable,
        given: Values,
        timesteps: Sequence[float],
        compute: Callable[[Sequence[float]], Sequence[Values]],
    ) -> Values | None:
        """The values of the step in progress; None if no other step's can be had with them.

        Args:
            of: tells one kind of values from another.
            given: what they depend on beside the timestep; other contents mean other values.
            timesteps: of the step in progress and of those that follow it up to the next full one,
                as far as they are known.
            compute: from timesteps to the values of each.
        """
        if not all(_is_watchable(value) for value in given):
            return None
        if len(given) != len(self._given) or not all(map(_Seen.is_still, self._given, given)):
            self.forget()
            self._given = [_Seen(value) for value in given]
        if (of, timesteps[0]) not in self._known:
            ahead = tuple(dict.fromkeys(timesteps))[:MOST]
            if len(ahead) < 2:
                return None
            keys = [(of, timestep) for timestep in ahead]
            self._known.update(zip(keys, compute(ahead), strict=True))
        return self._known[of, timesteps[0]]


class _Seen:
    """A tensor as it was: on the CPU by its values, elsewhere by what torch counts of writes."""

    def __init__(self, value: torch.Tensor) -> None:
        self._on_host = value.device.type == "cpu"
        self._value = value.clone() if self._on_host else value
        self._version = None if self._on_host else value._version

    def is_still(self, value: torch.Tensor) -> bool:
        if self._on_host:
            return value.device.type == "cpu" and torch.equal(value, self._value)
        return value is self._value and value._version == self._version


def _is_watchable(value: torch.Tensor) -> bool:
    """Whether a change of its values would be seen; writes to inference tensors are not counted."""
    return value.device.type == "cpu" or not value.is_inference()
