"""Tiny models of every class that is cached module by module, and the calls they are driven by."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from models import tiny_flux

WIDTH = 32  # of the stream, in every case
MODULATIONS = (
    "norm1.linear",
    "norm.linear",
    "norm2.linear",
    "mod",
    "scale_shift_table",
    "time_proj",
)


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: of the test.
        build: makes the model; its modulation is then randomised.
        shape: of the latent, without the batch.
        features: cached features (image stream).
        slots: histories; fewer than features where sums over features are kept.
        tokens: tokens of the image stream.
        inputs: (batch, generator) -> the arguments that stay the same.
        wrapped: per block list, all modules with an output (text included), for the literal test.
        timestep: (time in 1 .. 0, batch) -> the model's timestep.
        modular: whether single modules can be forecast.
    """

    name: str
    build: Callable[[], torch.nn.Module]
    shape: tuple[int, ...]
    features: int
    tokens: int
    inputs: Callable[[int, torch.Generator], dict[str, Any]]
    wrapped: dict[str, tuple[str, ...]]
    slots: int = 0
    modular: bool = False
    timestep: Callable[[float, int], torch.Tensor] = field(
        default=lambda t, batch: torch.full((batch,), 1000 * t)
    )

    def model(self, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        model = self.build().eval()
        generator = torch.Generator().manual_seed(seed + 1)
        for name, parameter in model.named_parameters():
            table = "scale_shift_table" in name
            if table or (name.endswith("bias") and any(part in name for part in MODULATIONS)):
                parameter.data.normal_(0, 0.5, generator=generator)
        return model

    @torch.no_grad()
    def draw(
        self, model: torch.nn.Module, steps: int = 12, batch: int = 2, seed: int = 0, **extra: Any
    ) -> torch.Tensor:
        """A plain Euler loop; everything random is fixed by the seed."""
        generator = torch.Generator().manual_seed(seed)
        dtype = next(model.parameters()).dtype
        x = torch.randn(batch, *self.shape, generator=generator).to(dtype)
        inputs = self.inputs(batch, generator) | extra
        inputs = {
            key: value.to(dtype)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for key, value in inputs.items()
        }
        times = torch.linspace(1, 0, steps + 1).tolist()
        for now, after in itertools.pairwise(times):
            timestep = self.timestep(now, batch)
            output = model(hidden_states=x, timestep=timestep, return_dict=False, **inputs)[0]
            channels = tuple(slice(0, size) for size in x.shape)
            x = x + (after - now) * output[channels]
        return x


def flow(t: float, batch: int) -> torch.Tensor:
    return torch.full((batch,), t)


def randn(*shape: int) -> Callable[[int, torch.Generator], torch.Tensor]:
    return lambda batch, generator: torch.randn(batch, *shape, generator=generator)


def inputs(fixed: dict[str, Any] | None = None, **drawn: Any) -> Any:
    return lambda batch, generator: {
        **{name: draw(batch, generator) for name, draw in drawn.items()},
        **{
            name: value(batch) if callable(value) else value
            for name, value in (fixed or {}).items()
        },
    }


DUAL = ("attn", "ff", "ff_context")
FLUX = Case(
    name="flux",
    build=tiny_flux,
    shape=(6, 4),
    features=2 * 2 + 2,
    tokens=6,
    timestep=flow,
    inputs=inputs(
        {"img_ids": torch.arange(18.0).view(6, 3), "txt_ids": torch.zeros(5, 3)},
        encoder_hidden_states=randn(5, 32),
        pooled_projections=randn(32),
    ),
    wrapped={"transformer_blocks": DUAL, "single_transformer_blocks": ("proj_out",)},
)


def _hunyuan(condition: str | None = None) -> torch.nn.Module:
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=condition is None,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
        image_condition_type=condition,
    )


def _hunyuan_case(name: str, condition: str | None) -> Case:
    fixed: dict[str, Any] = {
        "encoder_attention_mask": lambda batch: torch.ones(batch, 5).index_fill_(
            1, torch.tensor([4]), 0
        )
    }
    if condition is None:
        fixed["guidance"] = lambda batch: torch.full((batch,), 6000.0)
    return Case(
        name=name,
        build=lambda: _hunyuan(condition),
        shape=(4, 3, 4, 4),
        features=2 * 2 + 2,
        tokens=3 * 2 * 2,
        inputs=inputs(fixed, encoder_hidden_states=randn(5, 16), pooled_projections=randn(8)),
        wrapped={"transformer_blocks": DUAL, "single_transformer_blocks": ("proj_out",)},
    )


SD3 = Case(
    name="sd3",
    build=lambda: diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ),
    shape=(4, 8, 8),
    features=3 * 2 + 1,
    tokens=16,
    inputs=inputs(encoder_hidden_states=randn(5, 16), pooled_projections=randn(16)),
    wrapped={"transformer_blocks": (*DUAL, "attn2")},
)


def _qwen(zero_cond_t: bool) -> Case:
    shapes = [(1, 2, 3), (1, 2, 2)] if zero_cond_t else [(1, 2, 5)]
    return Case(
        name="qwen-edit" if zero_cond_t else "qwen",
        build=lambda: diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=1,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
            zero_cond_t=zero_cond_t,
        ),
        shape=(10, 4),
        features=3 * 2,
        tokens=10,
        timestep=flow,
        inputs=inputs(
            {"img_shapes": lambda batch: [shapes] * batch},
            encoder_hidden_states=randn(5, 16),
        ),
        wrapped={"transformer_blocks": ("attn", "img_mlp", "txt_mlp")},
    )


FLUX2 = Case(
    name="flux2",
    build=lambda: diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    ),
    shape=(6, 4),
    features=2 * 2 + 2,
    slots=3,
    tokens=6,
    timestep=flow,
    inputs=inputs(
        {
            "img_ids": torch.arange(24.0).view(6, 4),
            "txt_ids": torch.zeros(5, 4),
            "guidance": lambda batch: torch.full((batch,), 4.0),
        },
        encoder_hidden_states=randn(5, 16),
    ),
    wrapped={"transformer_blocks": DUAL, "single_transformer_blocks": ("attn",)},
)


def _wan(name: str, image: bool = False, per_token: bool = False) -> Case:
    tokens = 3 * 2 * 2

    def timestep(t: float, batch: int) -> torch.Tensor:
        if not per_token:
            return torch.full((batch,), 1000 * t)
        mask = torch.ones(tokens).index_fill_(0, torch.arange(4), 0)  # the first frame is given
        return (1000 * t * mask).expand(batch, -1)

    drawn = {"encoder_hidden_states": randn(5, 16)}
    if image:
        drawn["encoder_hidden_states_image"] = randn(3, 8)
    return Case(
        name=name,
        build=lambda: diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=32,
            ffn_dim=32,
            num_layers=3,
            rope_max_seq_len=32,
            **({"image_dim": 8, "added_kv_proj_dim": 32} if image else {}),
        ),
        shape=(4, 3, 4, 4),
        features=3 * 3,
        slots=3,
        tokens=tokens,
        timestep=timestep,
        inputs=inputs(**drawn),
        wrapped={"blocks": ("attn1", "attn2", "ffn")},
        modular=True,
    )


def _ltx(name: str, per_token: bool = False) -> Case:
    def timestep(t: float, batch: int) -> torch.Tensor:
        if not per_token:
            return torch.full((batch,), 1000 * t)
        return (1000 * t * (torch.arange(12) >= 4)).expand(batch, -1)

    return Case(
        name=name,
        build=lambda: diffusers.LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=3,
            caption_channels=16,
        ),
        shape=(12, 4),
        features=3 * 3,
        slots=3,
        tokens=12,
        timestep=timestep,
        inputs=inputs(
            {
                "encoder_attention_mask": lambda batch: torch.ones(batch, 5),
                "num_frames": 3,
                "height": 2,
                "width": 2,
            },
            encoder_hidden_states=randn(5, 16),
        ),
        wrapped={"transformer_blocks": ("attn1", "attn2", "ff")},
        modular=True,
    )


PIXART = Case(
    name="pixart",
    build=lambda: diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=32,
        norm_num_groups=1,
        sample_size=8,
        patch_size=2,
        caption_channels=16,
        use_additional_conditions=False,
    ),
    shape=(4, 8, 8),
    features=3 * 3,
    slots=3,
    tokens=16,
    inputs=inputs(
        {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
        encoder_hidden_states=randn(5, 16),
    ),
    wrapped={"transformer_blocks": ("attn1", "attn2", "ff")},
    modular=True,
)

COGVIDEOX = Case(
    name="cogvideox",
    build=lambda: diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=3,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=5,
    ),
    shape=(3, 4, 8, 8),
    features=3 * 2,
    tokens=3 * 16,
    inputs=inputs(encoder_hidden_states=randn(5, 16)),
    wrapped={"transformer_blocks": ("attn1", "ff")},
)

CASES = (
    FLUX,
    _hunyuan_case("hunyuan-video", None),
    _hunyuan_case("hunyuan-video-i2v", "latent_concat"),
    _hunyuan_case("hunyuan-video-i2v-token-replace", "token_replace"),
    SD3,
    _qwen(zero_cond_t=False),
    _qwen(zero_cond_t=True),
    FLUX2,
    _wan("wan"),
    _wan("wan-i2v", image=True),
    _wan("wan-ti2v", per_token=True),
    _ltx("ltx"),
    _ltx("ltx-i2v", per_token=True),
    PIXART,
    COGVIDEOX,
)
