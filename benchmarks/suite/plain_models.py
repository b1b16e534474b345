"""The published transformers in plain PyTorch: the same widths, blocks and tokens, nothing else.

For machines without diffusers. Rotary embeddings, text refiners and per-block embeddings are left
out; they cost little beside the blocks, and every row says that these blocks were measured. The
cache serves them through `register_adapter`, as any model of one's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foca_dit import register_adapter
from foca_dit.adapters.spec import BlockGroup, Feature, LinearGates, ModelSpec, SharedGates


@dataclass(frozen=True)
class Architecture:
    """What of a published model is rebuilt.

    Attributes:
        width, heads: of the stream [B, S, width].
        double, single: blocks with a text stream of their own, and with the text in the stream.
        alone: blocks of image tokens only (DiT).
        cross: blocks that attend to the text and share one modulation (Wan).
        text: tokens and width of the text; (0, 0): none.
        channels_in, channels_out: of one token of the latent.
        hidden: width inside the feed-forward; 0: four times the stream's.
    """

    width: int
    heads: int
    double: int = 0
    single: int = 0
    alone: int = 0
    cross: int = 0
    text: tuple[int, int] = (0, 0)
    channels_in: int = 64
    channels_out: int = 64
    hidden: int = 0

    def build(self) -> PlainTransformer:
        kind = PlainDiT if self.alone else PlainWan if self.cross else PlainFlux
        return kind(self).eval()


ARCHITECTURES = {
    "flux.1-dev": Architecture(3072, 24, double=19, single=38, text=(512, 4096)),
    "hunyuan-video": Architecture(3072, 24, double=20, single=40, text=(256, 4096)),
    "dit-xl/2-256": Architecture(1152, 16, alone=28, channels_in=16, channels_out=32),
    "dit-xl/2-512": Architecture(1152, 16, alone=28, channels_in=16, channels_out=32),
    "wan2.1-14b": Architecture(5120, 40, cross=40, text=(512, 4096), hidden=13824),
}


class Attention(nn.Module):
    """Attention of a stream to itself, or to a second one."""

    def __init__(self, width: int, heads: int, own: bool = True) -> None:
        super().__init__()
        self.heads, self.own = heads, own
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self.out(attend(self.q(x), self.kv(x if other is None else other), self.heads))


class JointAttention(nn.Module):
    """Image and text attend to both: (image, text) out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.qkv_text = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.out, self.out_text = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        qkv = torch.cat([self.qkv_text(text), self.qkv(x)], dim=1)
        mixed = attend(qkv[..., : x.shape[-1]], qkv[..., x.shape[-1] :], self.heads)
        return self.out(mixed[:, text.shape[1] :]), self.out_text(mixed[:, : text.shape[1]])


def attend(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, *kv.chunk(2, dim=-1)))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    hidden = hidden or 4 * width
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))


def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class AloneBlock(nn.Module):
    """A block of DiT."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.mod = nn.Linear(a.width, 6 * a.width)
        self.attn, self.ff = Attention(a.width, a.heads), feed_forward(a.width, a.hidden)

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = rows(self.mod, temb, 6)
        x = hidden_states + gate * self.attn(norm(hidden_states, scale, shift))
        return x + gate2 * self.ff(norm(x, scale2, shift2))


class DoubleBlock(nn.Module):
    """A block with two streams, as FLUX and HunyuanVideo begin."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.mod, self.mod_text = (nn.Linear(a.width, 6 * a.width) for _ in range(2))
        self.attn = JointAttention(a.width, a.heads)
        self.ff, self.ff_text = (feed_forward(a.width, a.hidden) for _ in range(2))

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, text = hidden_states, encoder_hidden_states
        shift, scale, gate, shift2, scale2, gate2 = rows(self.mod, temb, 6)
        t_shift, t_scale, t_gate, t_shift2, t_scale2, t_gate2 = rows(self.mod_text, temb, 6)
        mixed, mixed_text = self.attn(norm(x, scale, shift), norm(text, t_scale, t_shift))
        x, text = x + gate * mixed, text + t_gate * mixed_text
        x = x + gate2 * self.ff(norm(x, scale2, shift2))
        return text + t_gate2 * self.ff_text(norm(text, t_scale2, t_shift2)), x


class SingleBlock(nn.Module):
    """A block with the text in the stream, attention and feed-forward side by side."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.heads, self.width = a.heads, a.width
        hidden = a.hidden or 4 * a.width
        self.mod = nn.Linear(a.width, 3 * a.width)
        self.proj_in = nn.Linear(a.width, 3 * a.width + hidden)
        self.proj_out = nn.Linear(a.width + hidden, a.width)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        shift, scale, gate = rows(self.mod, temb, 3)
        inner = self.proj_in(norm(x, scale, shift))
        q, kv, inner = inner.split(
            [self.width, 2 * self.width, self.proj_out.in_features - self.width], -1
        )
        inner = torch.cat([attend(q, kv, self.heads), F.gelu(inner, approximate="tanh")], dim=-1)
        x = x + gate * self.proj_out(inner)
        tokens = encoder_hidden_states.shape[1]
        return x[:, :tokens], x[:, tokens:]


class CrossBlock(nn.Module):
    """A block of Wan: attention, ungated attention to the text, feed-forward."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, a.width) / a.width**0.5)
        self.attn1, self.attn2 = (Attention(a.width, a.heads) for _ in range(2))
        self.ffn = feed_forward(a.width, a.hidden)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = (self.scale_shift_table + temb).chunk(6, dim=1)
        x = hidden_states + gate * self.attn1(norm(hidden_states, scale, shift))
        x = x + self.attn2(F.layer_norm(x, x.shape[-1:]), encoder_hidden_states)
        return x + gate2 * self.ffn(norm(x, scale2, shift2))


def rows(linear: nn.Linear, temb: Tensor, count: int) -> tuple[Tensor, ...]:
    return linear(F.silu(temb)).unsqueeze(1).chunk(count, dim=-1)


class PlainTransformer(nn.Module):
    """Embedding, blocks, head. Subclasses only differ in the table that serves their blocks."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        self.x_embedder = nn.Linear(a.channels_in, a.width)
        self.time_embedder = nn.Sequential(
            nn.Linear(256, a.width), nn.SiLU(), nn.Linear(a.width, a.width)
        )
        self.text_embedder = nn.Linear(a.text[1], a.width) if a.text[0] else None
        self.time_proj = nn.Linear(a.width, 6 * a.width) if a.cross else None
        double = [DoubleBlock(a) for _ in range(a.double)] or [
            AloneBlock(a) for _ in range(a.alone)
        ]
        self.blocks = nn.ModuleList(double or [CrossBlock(a) for _ in range(a.cross)])
        self.single_blocks = nn.ModuleList(SingleBlock(a) for _ in range(a.single))
        self.norm_out = nn.Linear(a.width, 2 * a.width)
        self.proj_out = nn.Linear(a.width, a.channels_out)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
    ) -> tuple[Tensor]:
        """(prediction [B, S, channels_out],) from the latent's tokens [B, S, channels_in]."""
        x = self.x_embedder(hidden_states)
        temb = self.time_embedder(sinusoids(timestep).to(x.dtype))
        passed = (
            temb if self.time_proj is None else self.time_proj(F.silu(temb)).unflatten(-1, (6, -1))
        )
        if self.text_embedder is None:
            for block in self.blocks:
                x = block(x, passed)
        else:
            text = self.text_embedder(encoder_hidden_states)
            for block in [*self.blocks, *self.single_blocks]:
                if self.a.cross:
                    x = block(x, text, passed)
                else:
                    text, x = block(x, text, passed)
        scale, shift = rows(self.norm_out, temb, 2)
        return (self.proj_out(norm(x, scale, shift)),)


def sinusoids(timestep: Tensor, size: int = 256) -> Tensor:
    steps = torch.arange(size // 2, device=timestep.device, dtype=torch.float32)
    angles = timestep.float()[:, None] * torch.exp(-math.log(10000.0) * steps / (size // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class PlainDiT(PlainTransformer):
    """DiT-XL/2."""


class PlainFlux(PlainTransformer):
    """FLUX.1 and HunyuanVideo."""


class PlainWan(PlainTransformer):
    """Wan 2.1."""


_OWN = LinearGates("temb")
_TWO = ("encoder_hidden_states", "hidden_states")
_ADALN = (Feature("attn", 2, "mod"), Feature("ff", 5, "mod"))
_DUAL = (Feature("attn", 2, "mod", item=0), Feature("ff", 5, "mod"))
_SINGLE = (Feature("proj_out", 2, "mod", tokens="last"),)
_CROSS = (Feature("attn1", 2), Feature("attn2"), Feature("ffn", 5))
_TABLE = SharedGates(argument="temb", table="scale_shift_table")

for _class, _groups in (
    (PlainDiT, (BlockGroup("blocks", features=_ADALN, gates=_OWN),)),
    (
        PlainFlux,
        (
            BlockGroup("blocks", returns=_TWO, features=_DUAL, gates=_OWN),
            BlockGroup("single_blocks", returns=_TWO, features=_SINGLE, gates=_OWN),
        ),
    ),
    (PlainWan, (BlockGroup("blocks", features=_CROSS, gates=_TABLE),)),
):
    register_adapter(_class, ModelSpec(groups=_groups, new_stream=True))
