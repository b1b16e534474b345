"""Random tensors for the tests, also at unaligned addresses between guards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from backends import Backend
from torch import Tensor

# Around the vector widths of every instruction set and type, and around a Triton block.
SIZES = (0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 1023, 1024, 1025, 2049)
SHAPES = ((), (1,), (5, 0, 3), (2, 3, 5), (2, 7, 64), (1, 2, 3, 4, 5))

INTERPRETED_SHAPES = ((0,), (), (1,), (2, 3, 5), (1023,), (1025,))
LARGE = 150_007  # several threads and several chunks of a sum

_GUARD = 64  # elements on either side


class Maker:
    """Draws tensors from one seeded generator, for one dtype and device."""

    def __init__(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> None:
        self.dtype = dtype
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self.generator)
        return values.to(dtype or self.dtype).to(self.device)

    def many(self, n: int, *shape: int) -> list[Tensor]:
        return [self(*shape) for _ in range(n)]

    def small(self, *shape: int, on_device: bool = False) -> Tensor:
        """float32 weights, on the CPU unless told otherwise."""
        values = torch.randn(shape, generator=self.generator)
        return values.to(self.device) if on_device else values


def clones(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.clone() for t in tensors]


def bits(t: Tensor) -> Tensor:
    """The memory of a contiguous tensor: equal bits, NaN included, make equal tensors."""
    return t.detach().reshape(-1).view(torch.uint8)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def shapes(backend: Backend) -> list[tuple[int, ...]]:
    """The shapes to try: all of them where that is quick, a few in Triton's interpreter."""
    if backend.interpreted:
        return list(INTERPRETED_SHAPES)
    large = 20_011 if backend.name == "reference-cpu" else LARGE
    return [*((size,) for size in SIZES), *SHAPES, (large,)]


class Guarded:
    """A copy of a tensor ``offset`` elements into a buffer whose other bytes must not change."""

    def __init__(self, t: Tensor, offset: int) -> None:
        self.buffer = torch.full((2 * _GUARD + offset + t.numel(),), 77.0).to(t.dtype).to(t.device)
        self.slice = slice(_GUARD + offset, _GUARD + offset + t.numel())
        self.tensor = self.buffer[self.slice].view(t.shape)
        self.tensor.copy_(t)
        self.before = self.buffer.clone()

    def guards_intact(self) -> bool:
        after, before = self.buffer.clone(), self.before.clone()
        after[self.slice] = 0
        before[self.slice] = 0
        return same_bits(after, before)
