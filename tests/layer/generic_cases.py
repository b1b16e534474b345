"""Tiny models of the classes that are cached by stack and output only."""

from __future__ import annotations

import diffusers
import torch
from diffusers.pipelines.ideogram4.pipeline_ideogram4 import (
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
)


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


FLUX_LIKE = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": [4, 4, 8],
}
FLUX_CALL = {
    "hidden_states": randn(1, 16, 4),
    "encoder_hidden_states": randn(1, 7, 32),
    "img_ids": torch.arange(48.0).view(16, 3),
    "txt_ids": torch.zeros(7, 3),
}

# class name -> (configuration, arguments of a call, unit of time, granularities)
STACK = ("stack", "output")
GENERIC = {
    "MochiTransformer3DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 3,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": 16,
        },
        {
            "hidden_states": randn(1, 4, 2, 8, 8),
            "encoder_hidden_states": randn(1, 16, 16),
            "encoder_attention_mask": torch.ones(1, 16, dtype=torch.bool),
        },
        1000,
        STACK,
    ),
    "CosmosTransformer3DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 3,
            "text_embed_dim": 16,
            "adaln_lora_dim": 4,
            "max_size": (4, 8, 8),
            "concat_padding_mask": False,
        },
        {"hidden_states": randn(1, 4, 2, 8, 8), "encoder_hidden_states": randn(1, 5, 16)},
        1,
        STACK,
    ),
    "SkyReelsV2Transformer3DModel": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 32,
            "ffn_dim": 32,
            "num_layers": 3,
            "rope_max_seq_len": 32,
        },
        {"hidden_states": randn(1, 4, 2, 8, 8), "encoder_hidden_states": randn(1, 5, 16)},
        1000,
        STACK,
    ),
    "Kandinsky5Transformer3DModel": (
        {
            "in_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 16,
            "out_visual_dim": 4,
            "model_dim": 32,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 3,
            "axes_dims": (4, 6, 6),
        },
        {
            "hidden_states": randn(1, 2, 4, 4, 4),
            "encoder_hidden_states": randn(1, 5, 16),
            "pooled_projections": randn(1, 8),
            "visual_rope_pos": [torch.arange(2), torch.arange(2), torch.arange(2)],
            "text_rope_pos": torch.arange(5),
        },
        1000,
        STACK,
    ),
    "ChromaTransformer2DModel": (
        FLUX_LIKE
        | {
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        FLUX_CALL,
        1,
        STACK,
    ),
    "SanaTransformer2DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 4,
            "cross_attention_dim": 8,
            "caption_channels": 8,
            "sample_size": 8,
        },
        {"hidden_states": randn(1, 4, 8, 8), "encoder_hidden_states": randn(1, 8, 8)},
        1000,
        STACK,
    ),
    "Lumina2Transformer2DModel": (
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 3,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (128, 128, 128),
            "cap_feat_dim": 32,
        },
        {
            "hidden_states": randn(1, 4, 8, 8),
            "encoder_hidden_states": randn(1, 6, 32),
            "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool),
        },
        1,
        STACK,
    ),
    "PRXTransformer2DModel": (
        {
            "in_channels": 4,
            "patch_size": 2,
            "context_in_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "depth": 3,
            "axes_dim": [8, 8],
        },
        {"hidden_states": randn(1, 4, 8, 8), "encoder_hidden_states": randn(1, 6, 16)},
        1,
        STACK,
    ),
    "PriorTransformer": (
        {
            "num_attention_heads": 2,
            "attention_head_dim": 4,
            "num_layers": 3,
            "embedding_dim": 8,
            "num_embeddings": 7,
            "additional_embeddings": 4,
        },
        {
            "hidden_states": randn(1, 8),
            "proj_embedding": randn(1, 8),
            "encoder_hidden_states": randn(1, 7, 8),
        },
        1000,
        STACK,
    ),
    "StableAudioDiTModel": (
        {
            "sample_size": 16,
            "in_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_attention_heads": 2,
            "out_channels": 4,
            "cross_attention_dim": 16,
            "time_proj_dim": 16,
            "global_states_input_dim": 16,
            "cross_attention_input_dim": 16,
        },
        {
            "hidden_states": randn(1, 4, 16),
            "encoder_hidden_states": randn(1, 6, 16),
            "global_hidden_states": randn(1, 1, 16),
        },
        1,
        STACK,
    ),
    "LatteTransformer3DModel": (
        {
            "sample_size": 8,
            "num_layers": 2,
            "patch_size": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "caption_channels": 8,
            "in_channels": 4,
            "cross_attention_dim": 8,
            "out_channels": 8,
            "video_length": 3,
            "norm_type": "ada_norm_single",
            "num_embeds_ada_norm": 1000,
            "norm_elementwise_affine": False,
        },
        {"hidden_states": randn(1, 4, 3, 8, 8), "encoder_hidden_states": randn(1, 8, 8)},
        1000,
        ("output",),
    ),
    "MotifVideoTransformer3DModel": (
        {
            "in_channels": 33,
            "out_channels": 16,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_decoder_layers": 0,
            "patch_size": 1,
            "patch_size_t": 1,
            "norm_type": "layer_norm",
            "text_embed_dim": 32,
            "image_embed_dim": 4,
            "rope_axes_dim": (4, 4, 4),
            "enable_text_cross_attention_dual": False,
            "enable_text_cross_attention_single": False,
        },
        {"hidden_states": randn(1, 33, 2, 4, 4), "encoder_hidden_states": randn(1, 12, 32)},
        1000,
        ("output",),
    ),
    "Ideogram4Transformer2DModel": (
        {
            "in_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 12,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "adaln_dim": 8,
            "llm_features_dim": 16,
            "mrope_section": (2, 2, 2),
        },
        {
            "hidden_states": randn(1, 12, 4),
            "encoder_hidden_states": randn(1, 12, 16),
            "position_ids": torch.zeros(1, 12, 3, dtype=torch.long),
            "segment_ids": torch.zeros(1, 12, dtype=torch.long),
            "indicator": torch.tensor([[LLM_TOKEN_INDICATOR] * 4 + [OUTPUT_IMAGE_INDICATOR] * 8]),
        },
        lambda t: torch.tensor([0.8 - (0.8 - t) / 10]),  # its sinusoids turn ten times as fast
        STACK,
    ),
    "ErnieImageTransformer2DModel": (
        {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": 3,
            "ffn_hidden_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "text_in_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        },
        {
            "hidden_states": randn(1, 4, 4, 4),
            "text_bth": randn(1, 5, 16),
            "text_lens": torch.tensor([5]),
        },
        1000,
        STACK,
    ),
    "QwenImage21Transformer2DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "context_in_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
        {
            "hidden_states": randn(1, 16, 4),
            "encoder_hidden_states": randn(1, 5, 16),
            "img_shapes": [[(1, 4, 4)]],
            "img_mask": torch.tensor([[False] * 5 + [True] * 4]),
        },
        1,
        STACK,
    ),
    "Flux3Transformer2DModel": (
        {
            "in_channels": 4,
            "cond_in_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "timestep_channels": 16,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        {
            "hidden_states": randn(1, 16, 4),
            "encoder_hidden_states": randn(1, 5, 16),
            "img_ids": torch.arange(64.0).view(16, 4),
            "txt_ids": torch.zeros(5, 4),
            "image_cond_hidden_states": randn(1, 6, 4),
            "image_cond_ids": torch.ones(6, 4),
        },
        1,
        STACK,
    ),
    "SanaVideoTransformer3DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 12,
            "num_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 8,
            "sample_size": 8,
        },
        {"hidden_states": randn(1, 4, 2, 8, 8), "encoder_hidden_states": randn(1, 8, 8)},
        1000,
        STACK,
    ),
    # Video and sound: two streams and two outputs.
    "LTX2VideoTransformer3DModel": (
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "cross_attention_dim": 24,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 12,
            "audio_cross_attention_dim": 24,
            "num_layers": 2,
            "caption_channels": 16,
            "rope_double_precision": False,
        },
        {
            "hidden_states": randn(1, 8, 4),
            "audio_hidden_states": randn(1, 6, 4),
            "encoder_hidden_states": randn(1, 5, 16),
            "audio_encoder_hidden_states": randn(1, 5, 16),
            "num_frames": 2,
            "height": 2,
            "width": 2,
            "audio_num_frames": 6,
        },
        1000,
        ("output",),
    ),
    "HiDreamImageTransformer2DModel": (
        {
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "caption_channels": [16, 16],
            "text_emb_dim": 8,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (8, 8),
            "llama_layers": [0, 1],
            "force_inference_output": True,
        },
        {
            "hidden_states": randn(1, 4, 8, 8),
            "encoder_hidden_states_t5": randn(1, 5, 16),
            "encoder_hidden_states_llama3": randn(2, 1, 5, 16),
            "pooled_embeds": randn(1, 8),
        },
        1000,
        ("output",),
    ),
    "ZImageTransformer2DModel": (
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 3,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [4, 6, 6],
            "axes_lens": [128, 32, 32],
        },
        # Captions of two lengths: the shorter one is padded in the stream.
        {"x": list(randn(2, 4, 1, 8, 8)), "cap_feats": [randn(5, 16), randn(40, 16)]},
        1,
        STACK,
    ),
}


def build(name):
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**GENERIC[name][0]).eval()
    for parameter in model.parameters():
        if not parameter.any():  # modulations that start at zero would hide the blocks
            parameter.data.normal_(0, 0.1)
    return model
