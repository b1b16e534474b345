"""Who attends to whom: every block to itself and its left, upper-left and upper neighbours.

An image is cut into square blocks. Information flows to the right and down only, so the keys and
values of a block can be kept for those that come later, and no block waits for one to the right.
There are two ways to run that, with the same result: all blocks in one call (`AllAtOnce`), or one
after another with the neighbours' keys and values out of a memory of one row (`RowMemory`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch.nn import functional as F

Place = tuple[int, int]
"""Row and column of a block in the image."""

NEIGHBOURS = ((0, -1), (-1, -1), (-1, 0))  # left, upper left, upper: row and column offsets


def cut(image: torch.Tensor, side: int) -> torch.Tensor:
    """[B, C, H, W] into its blocks [B * rows * columns, C, side, side], row by row."""
    blocks = image.unfold(2, side, side).unfold(3, side, side)  # [B, C, rows, columns, side, side]
    return blocks.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).contiguous()


def join(blocks: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The inverse of `cut`."""
    blocks = blocks.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return blocks.flatten(4, 5).flatten(2, 3).contiguous()


def places(rows: int, columns: int) -> list[Place]:
    """All blocks of an image, row by row."""
    return [(row, column) for row in range(rows) for column in range(columns)]


class Heard(NamedTuple):
    """The keys and values that blocks attend to, [N, heads, tokens, D], and which of them exist."""

    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor | None = None


class Surroundings(Protocol):
    """What the model is told about where its blocks stand."""

    def places(self) -> torch.Tensor:
        """Row and column of the blocks in a call, int64 [P, 2]; the batch is P blocks per image."""
        ...

    def hear(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> Heard:
        """Adds the neighbours' keys and values in a layer to the blocks' own."""
        ...


class AllAtOnce:
    """All blocks of the images stand in one batch: for training, and for small images."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns

    def places(self) -> torch.Tensor:
        return torch.tensor(places(self.rows, self.columns))

    def hear(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> Heard:
        tokens = keys.shape[2]
        exists = [torch.ones(self.rows, self.columns, dtype=torch.bool)]
        for row, column in NEIGHBOURS:
            exists.append(F.pad(exists[0], (-column, 0, -row, 0))[: self.rows, : self.columns])
        mask = torch.stack(exists, dim=-1).flatten(0, 1).repeat_interleave(tokens, dim=1)
        mask = mask.repeat(len(keys) // len(mask), 1)[:, None, None].to(keys.device)
        return Heard(self._with_neighbours(keys), self._with_neighbours(values), mask)

    def _with_neighbours(self, own: torch.Tensor) -> torch.Tensor:
        grid = own.unflatten(0, (-1, self.rows, self.columns))
        shifted = [
            F.pad(grid, (0, 0, 0, 0, 0, 0, -column, 0, -row, 0))[:, : self.rows, : self.columns]
            for row, column in NEIGHBOURS
        ]
        return torch.cat([grid, *shifted], dim=-2).flatten(0, 2)


class RowMemory:
    """One block after another: keeps the keys and values that later blocks still ask for.

    Within a step, call `at(place)` for every block, row by row from the left, and then the model.

    Args:
        keep: False: whatever no later block of the same step asks for is let go at once, so one row
            and one block are held, however tall the image; a block that asks for a neighbour that
            was not computed in this step is an error. True: the latest keys and values of every
            block stay, and are what its neighbours get in a step that the block itself skipped.
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self._place: Place = (0, 0)
        self._held: dict[Place, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}

    def at(self, place: Place) -> RowMemory:
        """Goes to the block that is called next."""
        row, column = self._place = place
        if not self.keep:
            if place == (0, 0):
                self._held.clear()  # a new step
            for held in list(self._held):
                if held[0] < row - 1 or (held[0] == row - 1 and held[1] < column - 1):
                    del self._held[held]
        return self

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(
            tensor.nbytes
            for layers in self._held.values()
            for pair in layers.values()
            for tensor in pair
        )

    def places(self) -> torch.Tensor:
        return torch.tensor([self._place])

    def hear(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> Heard:
        row, column = self._place
        self._held.setdefault(self._place, {})[layer] = keys, values
        found = [(keys, values)]
        for down, right in NEIGHBOURS:
            place = (row + down, column + right)
            if min(place) < 0:
                continue
            if layer not in self._held.get(place, {}):
                raise RuntimeError(
                    f"RowMemory: block {self._place} is computed, but its neighbour {place} was "
                    "not in this step: expected all blocks to take the same full steps, or "
                    "RowMemory(keep=True)"
                )
            found.append(self._held[place][layer])
        return Heard(*(torch.cat(each, dim=2) for each in zip(*found, strict=True)))
