"""LTX-2: video and sound from one model, guidance in three calls a step, each with a name."""

import diffusers
import pytest
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats, remove_foca_cache

STEPS, BRANCHES = 10, 3


class Done(Exception):
    """All steps were made; what follows decodes, and there is nothing to decode with."""


def _pipeline():
    torch.manual_seed(0)
    sizes = {f"{kind}_connector_num_attention_heads": 2 for kind in ("video", "audio")}
    sizes |= {f"{kind}_connector_attention_head_dim": 8 for kind in ("video", "audio")}
    sizes |= {f"{kind}_connector_num_layers": 1 for kind in ("video", "audio")}
    sizes |= {f"{kind}_connector_num_learnable_registers": 4 for kind in ("video", "audio")}
    pipeline = diffusers.LTX2Pipeline(
        transformer=diffusers.LTX2VideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            audio_in_channels=128,
            audio_out_channels=128,
            audio_num_attention_heads=2,
            audio_attention_head_dim=12,
            audio_cross_attention_dim=24,
            num_layers=2,
            caption_channels=16,
        ).eval(),
        connectors=LTX2TextConnectors(caption_channels=16, text_proj_in_factor=2, **sizes).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        **dict.fromkeys(("vae", "audio_vae", "text_encoder", "tokenizer", "vocoder")),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _film(pipeline):
    """All that the model returned in the last step, both outputs in one tensor."""
    seen = []
    handle = pipeline.transformer.register_forward_hook(
        lambda module, args, outputs: seen.append(torch.cat([o.flatten() for o in outputs]))
    )

    def stop(pipe, step, timestep, given):
        if step == STEPS - 1:
            raise Done
        return given

    prompt = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 8, dtype=torch.long)
    with pytest.raises(Done):
        pipeline(
            prompt_embeds=prompt,
            prompt_attention_mask=mask,
            negative_prompt_embeds=0.5 * prompt,
            negative_prompt_attention_mask=mask,
            height=64,
            width=64,
            num_frames=9,
            num_inference_steps=STEPS,
            guidance_scale=4.0,
            stg_scale=1.0,
            spatio_temporal_guidance_blocks=[1],
            modality_scale=2.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            callback_on_step_end=stop,
        )
    handle.remove()
    return torch.cat(seen[-BRANCHES:])


@pytest.mark.supports("three branches")
def test_video_and_sound_under_three_kinds_of_guidance():
    pipeline = _pipeline()
    expected = _film(pipeline)
    apply_foca_cache(pipeline, FoCaCacheConfig(cache_interval=4))
    first = _film(pipeline)
    assert torch.equal(_film(pipeline), first)
    stats = foca_cache_stats(pipeline)
    assert stats["granularity"] == "output"
    assert (stats["full_steps"], stats["skipped_steps"]) == (2 * BRANCHES * 4, 2 * BRANCHES * 6)
    assert not stats["bypasses"]
    assert 0 < (first - expected).norm() < 0.6 * expected.norm()
    remove_foca_cache(pipeline)
    assert torch.equal(_film(pipeline), expected)
