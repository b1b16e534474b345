"""Upsampling by the model: Euler steps of a flow from noise, block after block within each step.

That is Inf-DiT's order. All blocks stand at the same noise level; a block's neighbours hand it the
keys and values that they computed at this very step, a moment before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from block_attention import AllAtOnce, Place, RowMemory, cut, join, places
from inf_dit import SIDE, InfDiT
from pixels import DETAIL, bicubic, conditions
from safetensors.torch import load_file

WEIGHTS = Path(__file__).with_name("weights") / "inf_dit.safetensors"

Scope = Callable[[Place], AbstractContextManager[object]]
"""What a block's call is made in: its cache, if it has one (`caching.py`)."""


def uncached(place: Place) -> AbstractContextManager[object]:
    return nullcontext()


def load(weights: Path = WEIGHTS) -> InfDiT:
    """The trained model, in float32."""
    model = InfDiT()
    model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return model.eval().requires_grad_(False)


def timesteps(steps: int) -> list[float]:
    """The model's timesteps of a run, and the 0 where it ends."""
    return torch.linspace(1000, 0, steps + 1).tolist()


def block_by_block(
    model: torch.nn.Module,
    x: torch.Tensor,
    timestep: torch.Tensor,
    upsampled: torch.Tensor,
    around: torch.Tensor,
    grid: Place,
    memory: RowMemory,
    scope: Scope = uncached,
) -> torch.Tensor:
    """One step: the velocity of all blocks of the images, row by row from the left.

    Args:
        model: an `InfDiT`.
        x, upsampled, around: as the model takes them, [B P, ...], P blocks of B images.
        timestep: of the images [B], or of all [1].
        grid: how many rows and columns of blocks an image has.
        memory: holds the neighbours' keys and values.
        scope: what every block is run in.
    """
    parts = [
        part.unflatten(0, (-1, grid[0] * grid[1])).unbind(1) for part in (x, upsampled, around)
    ]
    velocity = []
    for place, noisy, near, pixels in zip(places(*grid), *parts, strict=True):
        with scope(place):
            velocity.append(model(noisy, timestep, near, pixels, memory.at(place)))
    return torch.stack(velocity, dim=1).flatten(0, 1)


@torch.no_grad()
def upsample(
    model: torch.nn.Module,
    low: torch.Tensor,
    steps: int = 50,
    seed: int = 0,
    scope: Scope = uncached,
    memory: RowMemory | None = None,
    at_once: bool = False,
) -> torch.Tensor:
    """Images of twice the resolution.

    Args:
        model: an `InfDiT`.
        low: [B, 1, h, w] in [-1, 1], h and w multiples of SIDE / 2.
        steps: Euler steps.
        seed: of the noise.
        scope: what every block is run in: a cache per block position, or nothing.
        memory: None: one that holds a row.
        at_once: all blocks in one call per step instead, without `scope` and `memory`.

    Returns:
        [B, 1, 2 h, 2 w] in [-1, 1].
    """
    start = bicubic(low)
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed))
    x, seen = cut(noise, SIDE), conditions(low)
    grid = start.shape[2] // SIDE, start.shape[3] // SIDE
    memory = memory or RowMemory()
    for now, after in itertools.pairwise(timesteps(steps)):
        t = torch.tensor([now])
        if at_once:
            velocity = model(x, t, *seen, AllAtOnce(*grid))
        else:
            velocity = block_by_block(model, x, t, *seen, grid, memory, scope)
        x = x + (after - now) / 1000 * velocity
    return (start + join(x, *grid) / DETAIL).clamp(-1, 1)
