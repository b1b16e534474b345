"""Tiny video models that are cached module by module."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from case import Case, inputs, randn

DUAL = ("attn", "ff", "ff_context")


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


def hunyuan(name: str, condition: str | None) -> Case:
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


FRAMEPACK = Case(
    name="hunyuan-video-framepack",
    build=lambda: diffusers.HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    ),
    shape=(4, 3, 4, 4),
    features=2 * 2 + 2,
    tokens=3 * 2 * 2 + 2 * 2 * 2 + 1 + 2,  # latents, clean ones, histories at 1/2 and 1/4
    inputs=inputs(
        {
            "encoder_attention_mask": lambda batch: torch.ones(batch, 5),
            "guidance": lambda batch: torch.full((batch,), 6000.0),
            "indices_latents": torch.arange(3.0),
            "indices_latents_clean": torch.arange(2.0),
            "indices_latents_history_2x": torch.arange(2.0),
            "indices_latents_history_4x": torch.arange(8.0),
        },
        encoder_hidden_states=randn(5, 16),
        pooled_projections=randn(8),
        image_embeds=randn(3, 16),
        latents_clean=randn(4, 2, 4, 4),
        latents_history_2x=randn(4, 2, 4, 4),
        latents_history_4x=randn(4, 8, 4, 4),
    ),
    wrapped={"transformer_blocks": DUAL, "single_transformer_blocks": ("proj_out",)},
)


def wan(
    name: str,
    image: bool = False,
    per_token: bool = False,
    cls: Any = diffusers.WanTransformer3DModel,
) -> Case:
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
        build=lambda: cls(
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


def ltx(name: str, per_token: bool = False) -> Case:
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

HUNYUAN15 = Case(
    name="hunyuan-video-1.5",
    build=lambda: diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
        target_size=16,
        task_type="t2v",
    ),
    shape=(4, 2, 4, 4),
    features=3 * 2,
    tokens=2 * 4 * 4,
    time_in_dtype=True,
    inputs=inputs(
        {
            "encoder_attention_mask": lambda batch: torch.ones(batch, 6),
            "encoder_attention_mask_2": lambda batch: torch.ones(batch, 4),
            "image_embeds": lambda batch: torch.zeros(batch, 3, 12),
        },
        encoder_hidden_states=randn(6, 16),
        encoder_hidden_states_2=randn(4, 8),
    ),
    wrapped={"transformer_blocks": DUAL},
)

ALLEGRO = Case(
    name="allegro",
    build=lambda: diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        cross_attention_dim=32,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=8,
    ),
    shape=(4, 2, 8, 8),
    features=3 * 3,
    slots=3,
    tokens=2 * 4 * 4,
    inputs=inputs({"image_rotary_emb": None}, encoder_hidden_states=randn(6, 8)),
    wrapped={"transformer_blocks": ("attn1", "attn2", "ff")},
    modular=True,
)
