"""A small diffusion transformer in plain PyTorch: nothing here knows of caching."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        a, b, gate1, c, d, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm(x) * (1 + b) + a)
        return x + gate2 * self.mlp(self.norm(x) * (1 + d) + c)


class PlainDiT(nn.Module):
    def __init__(self, channels: int = 4, width: int = 32, heads: int = 2, depth: int = 3) -> None:
        super().__init__()
        self.embed, self.time = nn.Linear(channels, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, channels)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        half = self.time.in_features // 2
        angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        condition = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.head(x)
