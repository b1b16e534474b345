"""All tiny models that are cached module by module."""

from __future__ import annotations

import diffusers
from case import WIDTH
from cases_image import (
    AURA_FLOW,
    BRIA,
    COGVIEW3,
    COGVIEW4,
    DIT,
    FLUX,
    FLUX2,
    GLM,
    HUNYUAN_IMAGE,
    KREA2,
    LONGCAT,
    OVIS,
    PIXART,
    SD3,
    qwen,
)
from cases_video import ALLEGRO, COGVIDEOX, FRAMEPACK, HUNYUAN15, hunyuan, ltx, wan

__all__ = ["BY_NAME", "CASES", "WIDTH"]

CASES = (
    DIT,
    FLUX,
    AURA_FLOW,
    COGVIEW3,
    COGVIEW4,
    GLM,
    KREA2,
    BRIA,
    LONGCAT,
    OVIS,
    hunyuan("hunyuan-video", None),
    hunyuan("hunyuan-video-i2v", "latent_concat"),
    hunyuan("hunyuan-video-i2v-token-replace", "token_replace"),
    SD3,
    FRAMEPACK,
    HUNYUAN_IMAGE,
    qwen(zero_cond_t=False),
    qwen(zero_cond_t=True),
    FLUX2,
    wan("wan"),
    wan("wan-i2v", image=True),
    wan("wan-ti2v", per_token=True),
    wan("chrono-edit", cls=diffusers.ChronoEditTransformer3DModel),
    ltx("ltx"),
    ltx("ltx-i2v", per_token=True),
    PIXART,
    COGVIDEOX,
    HUNYUAN15,
    ALLEGRO,
)
BY_NAME = {case.name: case for case in CASES}
