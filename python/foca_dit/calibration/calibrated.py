"""A scheme that was calibrated on one model and sampler, and is refused on any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from foca_dit.origin import Origin
from foca_dit.schemes.base import Scheme, Table

ORIGIN = "calibrated_on"
"""Key of the origin in the files of `foca-dit calibrate`."""


@dataclass(frozen=True)
class Calibrated(Scheme):
    """A scheme with its origin; all tables are the scheme's own.

    Args:
        base: the scheme.
        made_for: what it was calibrated on; None: anything.
    """

    base: Scheme
    made_for: Origin | None = field(default=None, kw_only=True)

    name: ClassVar[str] = "calibrated"
    citation: ClassVar[str] = "that of its base"

    @property
    def origin(self) -> Origin | None:
        return self.made_for

    @property
    def described(self) -> Scheme:
        return self.base

    @property
    def order(self) -> int:
        return self.base.order

    @property
    def history_size(self) -> int:
        return self.base.history_size

    @property
    def exact_degree(self) -> int:
        return 0

    def transition(self, tau: Sequence[float], anchors: Sequence[int]) -> Table:
        return self.base.transition(tau, anchors)

    def weights(self, tau: Sequence[float], anchors: Sequence[int], step: int) -> Table:
        return self.base.weights(tau, anchors, step)

    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        return self.base._rows(tau, anchors)

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        return self.base._weights(tau, anchors, step)


def read_origin(data: Mapping[str, Any]) -> Origin:
    """The origin in a file's data.

    Raises:
        ValueError: there is none, as in files of older versions.
    """
    if not data.get(ORIGIN):
        raise ValueError(
            f"'{ORIGIN}' is missing: calibrate again, so that the file knows its model and sampler"
        )
    return Origin.from_dict(data[ORIGIN])
