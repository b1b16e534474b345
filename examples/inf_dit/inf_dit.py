"""A compact super-resolution transformer with the structure of Inf-DiT (arXiv:2405.04312).

Plain PyTorch; nothing here knows of caching. What is Inf-DiT's: blocks that attend to themselves
and their left, upper-left and upper neighbours, adaLN-zero modulation by time, normalised queries
and keys, rotary positions, the upsampled image beside the noise as input, and in the first layer a
cross-attention to the low-resolution pixels around a block. README.md says what is not.
"""

from __future__ import annotations

import math

import torch
from block_attention import Surroundings
from torch import nn
from torch.nn import functional as F

SCALE = 2  # of the upsampling
SIDE = 14  # pixels along a block
PATCH = 2  # pixels along a token
AROUND = 3 * SIDE // SCALE  # low-resolution pixels along what a block sees of its surroundings
PER_TOKEN = 3  # of these along one token of the cross-attention


def turns(rows: torch.Tensor, columns: torch.Tensor, width: int) -> torch.Tensor:
    """Rotary angles of tokens: half of a head's pairs turn with the row, half with the column.

    Args:
        rows, columns: float32 [P, tokens].
        width: of a head, a multiple of 4.

    Returns:
        complex64 [P, 1, tokens, width / 2].
    """
    speeds = 100.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.cat([rows[..., None] * speeds, columns[..., None] * speeds], dim=-1)
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def turn(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """Rotates queries or keys [N, heads, tokens, D], N a multiple of the places in `by`."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    by = by.repeat(len(x) // len(by), 1, 1, 1)
    return torch.view_as_real(pairs * by).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Of a block's tokens to those of the block and its neighbours."""

    def __init__(self, width: int, heads: int, layer: int) -> None:
        super().__init__()
        self.heads, self.layer = heads, layer
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_q, self.norm_k = nn.LayerNorm(width // heads), nn.LayerNorm(width // heads)

    def forward(
        self, x: torch.Tensor, by: torch.Tensor, surroundings: Surroundings
    ) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = turn(self.norm_q(q), by).to(v.dtype), turn(self.norm_k(k), by).to(v.dtype)
        k, v, mask = surroundings.hear(self.layer, k, v)
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(heard.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Of a block's tokens to the low-resolution pixels of the block and of all eight around it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, tokens = heads, (AROUND // PER_TOKEN) ** 2
        self.embed = nn.Conv2d(1, width, PER_TOKEN, PER_TOKEN)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.query_place = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, width))
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        near = self.embed(around).flatten(2).transpose(1, 2) + self.place
        q = self.q(x + self.query_place).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(near).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, layer: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads, layer)
        self.cross = CrossAttention(width, heads) if layer == 0 else None
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self,
        x: torch.Tensor,
        condition: torch.Tensor,
        around: torch.Tensor,
        by: torch.Tensor,
        surroundings: Surroundings,
    ) -> torch.Tensor:
        a, b, gate1, c, d, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm(x) * (1 + b) + a, by, surroundings)
        if self.cross is not None:
            x = x + self.cross(self.norm(x), around)
        return x + gate2 * self.mlp(self.norm(x) * (1 + d) + c)


class InfDiT(nn.Module):
    """Predicts the velocity of some blocks, given the low-resolution image.

    Args:
        width, heads, depth: of the transformer.
    """

    def __init__(self, width: int = 128, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.head_width = width // heads
        self.embed = nn.Conv2d(2, width, PATCH, PATCH)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(Layer(width, heads, layer) for layer in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, PATCH * PATCH)
        zeroed = [self.modulation, self.head, *(layer.modulation for layer in self.layers)]
        for linear in (*zeroed, self.layers[0].cross.out):  # at the start a layer does nothing
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        upsampled: torch.Tensor,
        around: torch.Tensor,
        surroundings: Surroundings,
    ) -> torch.Tensor:
        """One call: one block of every image, or all of them (`block_attention.py`).

        Args:
            x: the noisy blocks [N, 1, SIDE, SIDE].
            timestep: 1000 times the noise share, [N], or [1] for all blocks.
            upsampled: the same blocks of the image upsampled by bicubic interpolation.
            around: low-resolution pixels around them, [N, 1, AROUND, AROUND].
            surroundings: where the blocks stand, and their neighbours' keys and values.

        Returns:
            The velocity, like x.
        """
        half = self.time[0].in_features // 2
        angles = timestep[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        condition = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        side = SIDE // PATCH
        inside = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        at = (surroundings.places()[:, None] * side + inside).float()  # [P, tokens, 2]
        by = turns(at[..., 0], at[..., 1], self.head_width)
        x = self.embed(torch.cat([x, upsampled], dim=1)).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x, condition, around, by, surroundings)
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        x = self.head(self.norm(x) * (1 + scale) + shift)
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (side, side)), PATCH)
