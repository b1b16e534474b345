"""Tiny image models that are cached module by module."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from case import Case, flow, inputs, randn
from models import tiny_dit, tiny_flux

DUAL = ("attn", "ff", "ff_context")
DIT = Case(
    name="dit",
    build=tiny_dit,
    shape=(4, 8, 8),
    features=3 * 2,
    tokens=16,
    inputs=inputs({"class_labels": torch.arange}),
    wrapped={"transformer_blocks": ("attn1", "ff")},
    modular=True,
)
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


def qwen(zero_cond_t: bool) -> Case:
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

HUNYUAN_IMAGE = Case(
    name="hunyuan-image",
    build=lambda: diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=16,
        rope_axes_dim=(8, 8),
    ),
    shape=(4, 4, 4),
    features=2 * 2 + 2,
    tokens=16,
    time_in_dtype=True,
    inputs=inputs(
        {"encoder_attention_mask": lambda batch: torch.ones(batch, 5)},
        encoder_hidden_states=randn(5, 16),
    ),
    wrapped={"transformer_blocks": DUAL, "single_transformer_blocks": ("proj_out",)},
)


def flux_like(name: str, cls: Any, timestep: Any = flow, **changes: Any) -> Case:
    """Classes with FLUX's blocks under another name."""
    fixed: dict[str, Any] = {
        "img_ids": torch.arange(18.0).view(6, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    if name == "longcat-image":
        fixed["guidance"] = lambda batch: torch.full((batch,), 3.5)
    config: dict[str, Any] = {
        "in_channels": 4,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": [4, 4, 8],
    }
    return Case(
        name=name,
        build=lambda: cls(**(config | changes)),
        shape=(6, 4),
        features=2 * 2 + 2,
        tokens=6,
        timestep=timestep,
        inputs=inputs(fixed, encoder_hidden_states=randn(5, 32)),
        wrapped={"transformer_blocks": DUAL, "single_transformer_blocks": ("proj_out",)},
    )


BRIA = flux_like(
    "bria",
    diffusers.BriaTransformer2DModel,
    timestep=lambda t, batch: torch.full((batch,), 1000 * t),
    pooled_projection_dim=None,
    axes_dims_rope=[0, 8, 8],
)
LONGCAT = flux_like(
    "longcat-image", diffusers.LongCatImageTransformer2DModel, pooled_projection_dim=32
)
OVIS = flux_like("ovis-image", diffusers.OvisImageTransformer2DModel, out_channels=4)


def _sizes(batch: int) -> torch.Tensor:
    return torch.tensor([[64.0, 64.0]]).expand(batch, -1)


def cogview(
    name: str,
    cls: Any,
    wrapped: tuple[str, ...],
    call: dict[str, Any] = {"original_size": _sizes},  # noqa: B006
    **config: Any,
) -> Case:
    return Case(
        name=name,
        build=lambda: cls(
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=8,
            time_embed_dim=8,
            condition_dim=4,
            **config,
        ),
        shape=(4, 8, 8),
        features=3 * 2,
        tokens=16,
        inputs=inputs(
            {
                **call,
                "target_size": _sizes,
                "crop_coords": lambda batch: torch.zeros(batch, 2),
            },
            encoder_hidden_states=randn(8, 8),
        ),
        wrapped={"transformer_blocks": wrapped},
    )


# Its feed-forward is called on the image, then on the text.
COGVIEW4 = cogview("cogview4", diffusers.CogView4Transformer2DModel, ("attn1", "ff", "ff"))
COGVIEW3 = cogview(
    "cogview3-plus",
    diffusers.CogView3PlusTransformer2DModel,
    ("attn1", "ff"),
    pos_embed_max_size=8,
    sample_size=8,
)
GLM = cogview(
    "glm-image",
    diffusers.GlmImageTransformer2DModel,
    ("attn1", "ff", "ff"),
    {
        "prior_token_id": lambda batch: torch.arange(batch * 16).view(batch, 16) % 8,
        "prior_token_drop": lambda batch: torch.zeros(batch, 16, dtype=torch.bool),
    },
    prior_vq_quantizer_codebook_size=8,
)
KREA2 = Case(
    name="krea2",
    build=lambda: diffusers.Krea2Transformer2DModel(
        in_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    ),
    shape=(16, 4),
    features=3 * 2,
    slots=3,
    tokens=5 + 16,  # text and image
    timestep=flow,
    inputs=inputs(
        {"position_ids": torch.arange(63.0).view(21, 3)}, encoder_hidden_states=randn(5, 2, 16)
    ),
    wrapped={"transformer_blocks": ("attn", "ff")},
    modular=True,
)
AURA_FLOW = Case(
    name="aura-flow",
    build=lambda: diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=16,
    ),
    shape=(4, 8, 8),
    features=2 + 2,
    tokens=16,
    timestep=flow,
    inputs=inputs(encoder_hidden_states=randn(6, 32)),
    wrapped={"joint_transformer_blocks": DUAL, "single_transformer_blocks": ("attn", "ff")},
)
