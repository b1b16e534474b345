"""Reuse of the latest computed feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foca_dit.schemes.base import Scheme, Table


@dataclass(frozen=True)
class Reuse(Scheme):
    """Repeats the latest computed feature. History: (F_a,). Weights: (1,)."""

    name: ClassVar[str] = "reuse"
    citation: ClassVar[str] = (
        "Selvaraju et al., FORA: Fast-Forward Caching in Diffusion Transformer Acceleration, "
        "arXiv:2407.01425; eq. 3 of the FoCa paper"
    )

    @property
    def order(self) -> int:
        return 0

    @property
    def history_size(self) -> int:
        return 1

    @property
    def exact_degree(self) -> int:
        return 0

    def _rows(self, tau: list[float], anchors: list[int]) -> Table:
        return np.zeros((0, 2))

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        return np.ones(1)
