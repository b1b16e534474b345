"""Published configurations on the meta device: how many features, and what they would hold."""

import diffusers
import pytest
import torch

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats
from foca_dit.adapters.hooks import find_hook
from foca_dit.history import FeatureHistories
from foca_dit.stats import CacheStats

# (class, configuration where it differs from the class's defaults, histories at module, features)
PUBLISHED = {
    "DiT-XL/2": ("DiTTransformer2DModel", {}, 56, 56),
    "FLUX.1-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}, 76, 76),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {}, 80, 80),
    "SD3 medium": (
        "SD3Transformer2DModel",
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 192,
        },
        48,
        48,
    ),
    "SD3.5 medium": (
        "SD3Transformer2DModel",
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(13)),
        },
        48 + 13,
        48 + 13,
    ),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}, 120, 120),
    "FLUX.2-dev": ("Flux2Transformer2DModel", {}, 3, 8 * 2 + 48),
    "Wan 2.1 14B": ("WanTransformer3DModel", {}, 3, 120),
    "LTX-Video": ("LTXVideoTransformer3DModel", {}, 3, 84),
    "PixArt-alpha": ("PixArtTransformer2DModel", {"caption_channels": 4096}, 3, 84),
    "CogVideoX-5b": (
        "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 48,
            "num_layers": 42,
            "use_rotary_positional_embeddings": True,
        },
        84,
        84,
    ),
}


def published(name):
    cls, changes, *_ = PUBLISHED[name]
    with torch.device("meta"):
        return getattr(diffusers, cls)(**changes).to(torch.bfloat16).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_feature_count(name):
    *_, histories, features = PUBLISHED[name]
    model = apply_foca_cache(published(name), FoCaCacheConfig(preset="paper"))
    hook = find_hook(model)
    assert foca_cache_stats(model)["granularity"] == "module"
    assert (hook.features, len(hook.layout.located)) == (histories, features)


@pytest.mark.parametrize(
    ("granularity", "features", "gigabytes"), [("module", 76, 5.7), ("stack", 1, 0.0755)]
)
def test_flux_at_1024_x_1024_holds_what_the_page_says(granularity, features, gigabytes):
    """4096 image tokens of width 3072 in bfloat16, three tensors each; text holds nothing."""
    config = FoCaCacheConfig(preset="paper", granularity=granularity)
    model = apply_foca_cache(published("FLUX.1-dev"), config)
    count = foca_cache_stats(model)["features"]
    assert count == features
    histories = FeatureHistories(config.resolve(), count, CacheStats())
    histories.begin(0, [0.0])
    width = model.config.num_attention_heads * model.config.attention_head_dim
    for feature in range(count):
        tokens = torch.empty(1, 4096, width, dtype=torch.bfloat16, device="meta")
        histories.commit(feature, tokens)
    assert histories.nbytes == features * 3 * 4096 * 3072 * 2
    assert histories.nbytes / 1e9 == pytest.approx(gigabytes, rel=0.01)
