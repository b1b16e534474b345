"""Real pipelines around tiny transformers, module by module, against the literal oracle."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from cases import BY_NAME
from diffusers import FluxTransformer2DModel
from literal import wrap
from models import flux_prompt, tiny_flux_pipeline
from PIL import Image

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats, remove_foca_cache

CONFIG = FoCaCacheConfig(preset="paper", cache_interval=4, history_dtype=torch.float32)
WRAPPED = {
    "transformer_blocks": ("attn", "ff", "ff_context"),
    "single_transformer_blocks": ("proj_out",),
}


def _picture():
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


IMAGE, MASK = _picture(), _picture().convert("L")
# pipeline -> (channels of the transformer's input, its arguments, steps of 10 that it runs)
FLUX_PIPELINES = {
    "FluxPipeline": (4, {}, 10),
    "FluxImg2ImgPipeline": (4, {"image": IMAGE, "strength": 0.8}, 8),
    "FluxInpaintPipeline": (4, {"image": IMAGE, "mask_image": MASK, "strength": 0.8}, 8),
    "FluxKontextPipeline": (4, {"image": IMAGE, "_auto_resize": False, "max_area": 256}, 10),
    "FluxFillPipeline": (12, {"image": IMAGE, "mask_image": MASK}, 10),
}


def _pipeline(name):
    parts = tiny_flux_pipeline()
    parts.vae.register_to_config(shift_factor=0.0)
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=FLUX_PIPELINES[name][0],
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    texts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = getattr(diffusers, name)(
        scheduler=parts.scheduler, vae=parts.vae, transformer=transformer.eval(), **texts
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _generate(name, pipeline, seed=0):
    return pipeline(
        **flux_prompt(seed),
        **FLUX_PIPELINES[name][1],
        height=16,
        width=16,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images


SHOWN = {"FluxImg2ImgPipeline": ["strength"], "FluxInpaintPipeline": ["inpainting"]}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.supports("pipeline", *SHOWN.get(name, [])))
        for name in FLUX_PIPELINES
    ],
)
def test_every_flux_pipeline_equals_the_recursion_around_every_module(name):
    steps = FLUX_PIPELINES[name][2]
    full_steps = [step for step in (0, 1, 2, 6, 10) if step < steps]
    literal = _pipeline(name)
    wrap(literal.transformer, WRAPPED, full_steps)
    pipeline = _pipeline(name)
    uncached = _generate(name, pipeline)
    apply_foca_cache(pipeline, CONFIG)
    actual = _generate(name, pipeline)
    stats = foca_cache_stats(pipeline)
    assert stats["granularity"] == "module"
    assert (stats["full_steps"], stats["collapsed_skips"]) == (
        len(full_steps),
        steps - len(full_steps),
    )
    torch.testing.assert_close(actual, _generate(name, literal), rtol=1e-5, atol=1e-5)
    assert (actual - uncached).abs().max() > 1e-3
    _generate(name, pipeline, seed=1)
    assert torch.equal(_generate(name, pipeline), actual)
    remove_foca_cache(pipeline)
    assert torch.equal(_generate(name, pipeline), uncached)


def _noise(*shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


TEXT = {"prompt_embeds": _noise(1, 5, 16)}
GUIDED = TEXT | {"negative_prompt_embeds": _noise(1, 5, 16, scale=0.5)}
MASKED = GUIDED | {
    "prompt_attention_mask": torch.ones(1, 5),
    "negative_prompt_attention_mask": torch.ones(1, 5),
}
VIDEO = {"height": 32, "width": 32, "num_frames": 9}
# pipeline -> (case, calls of the model per step, its arguments)
PIPELINES = {
    "HunyuanVideoPipeline": (
        "hunyuan-video",
        1,
        TEXT
        | VIDEO
        | {"pooled_prompt_embeds": _noise(1, 8), "prompt_attention_mask": torch.ones(1, 5)},
    ),
    "WanPipeline": ("wan", 2, GUIDED | VIDEO | {"guidance_scale": 3.0}),
    "StableDiffusion3Pipeline": (
        "sd3",
        1,
        GUIDED
        | {"pooled_prompt_embeds": _noise(1, 16), "negative_pooled_prompt_embeds": _noise(1, 16)}
        | {"height": 64, "width": 64},
    ),
    "QwenImagePipeline": (
        "qwen",
        2,
        GUIDED
        | {
            "prompt_embeds_mask": torch.ones(1, 5, dtype=torch.long),
            "negative_prompt_embeds_mask": torch.ones(1, 5, dtype=torch.long),
            "true_cfg_scale": 3.0,
            "height": 64,
            "width": 64,
        },
    ),
    "Flux2Pipeline": ("flux2", 1, TEXT | {"height": 32, "width": 32}),
    "LTXPipeline": ("ltx", 1, MASKED | {"height": 64, "width": 64, "num_frames": 9}),
    "PixArtAlphaPipeline": (
        "pixart",
        1,
        MASKED
        | {"negative_prompt": None, "use_resolution_binning": False, "height": 64, "width": 64},
    ),
    "CogVideoXPipeline": ("cogvideox", 1, GUIDED | {"height": 64, "width": 64, "num_frames": 9}),
}
SCHEDULERS = {
    "PixArtAlphaPipeline": diffusers.DDIMScheduler,
    "CogVideoXPipeline": diffusers.CogVideoXDDIMScheduler,
}


def _of(name):
    """The pipeline of a case's model; prompts go in as embeddings, latents come out."""
    cls, case = getattr(diffusers, name), BY_NAME[PIPELINES[name][0]]
    scheduler = SCHEDULERS.get(name, diffusers.FlowMatchEulerDiscreteScheduler)()
    parts = {"transformer": case.model(), "scheduler": scheduler}
    required = [
        parameter.name
        for parameter in inspect.signature(cls.__init__).parameters.values()
        if parameter.default is inspect.Parameter.empty and parameter.name != "self"
    ]
    pipeline = cls(**(dict.fromkeys(required) | parts))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _latents(name, pipeline, steps=12):
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": steps, "generator": generator, "output_type": "latent"}
    return pipeline(**PIPELINES[name][2], **options)[0]


GUIDED_BY = {"HunyuanVideoPipeline": "distilled", "Flux2Pipeline": "distilled"}


def _guidance(name):
    return GUIDED_BY.get(name, "two calls" if PIPELINES[name][1] == 2 else "batch of two")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.supports("pipeline", _guidance(name)))
        for name in PIPELINES
    ],
)
def test_pipelines_of_every_family_equal_the_recursion(name):
    """One call a step, guidance as one batch of two, and guidance as two calls a step."""
    case, branches, _ = PIPELINES[name]
    full_steps = (0, 1, 2, 6, 10)
    literal = _of(name)
    wrap(literal.transformer, BY_NAME[case].wrapped, full_steps, branches)
    pipeline = _of(name)
    uncached = _latents(name, pipeline)
    apply_foca_cache(pipeline, CONFIG)
    actual = _latents(name, pipeline)
    stats = foca_cache_stats(pipeline)
    assert (stats["full_steps"], stats["collapsed_skips"]) == (5 * branches, 7 * branches)
    assert not stats["bypasses"]
    assert not stats["restarts"]
    torch.testing.assert_close(actual, _latents(name, literal), rtol=1e-4, atol=1e-4)
    assert (actual - uncached).abs().max() > 2e-3
    _latents(name, pipeline, steps=7)
    assert torch.equal(_latents(name, pipeline), actual)
    remove_foca_cache(pipeline)
    assert torch.equal(_latents(name, pipeline), uncached)
