"""Models that keep the keys and values of text or of given images for the steps to come."""

import itertools
import warnings

import diffusers
import pytest
import torch
from cases import BY_NAME
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from generic_cases import GENERIC

from foca_dit import (
    CacheState,
    FoCaCacheConfig,
    apply_foca_cache,
    cache_scope,
    foca_cache_stats,
    reasons,
)
from foca_dit.adapters.models import find_spec

STEPS = 10
GLM = BY_NAME["glm-image"]


@torch.no_grad()
def _glm(model, images=1, seed=0):
    """As GlmImagePipeline edits images: their keys and values first, at timestep 0."""
    generator = torch.Generator().manual_seed(seed)
    call = GLM.call(1, generator, torch.float32)
    x = torch.randn(1, *GLM.shape, generator=generator)
    caches = GlmImageKVCache(3)
    caches.set_mode("write")
    nothing = call | {"encoder_hidden_states": call["encoder_hidden_states"][:, :0]}
    for _ in range(images):
        image = torch.randn(1, *GLM.shape, generator=generator)
        model(hidden_states=image, timestep=torch.zeros(1), kv_caches=caches, **nothing)
    caches.next_sample()
    caches.set_mode("read")
    for now, after in itertools.pairwise(torch.linspace(1, 0, STEPS + 1).tolist()):
        x = x + (after - now) * GLM.velocity(model, x, now, call | {"kv_caches": caches})
    return x


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("scoped", [False, True])
def test_a_call_that_keeps_those_of_a_given_image_is_no_step(granularity, images, scoped):
    """It is the loop that would be told wrong by it: its first step, and its direction."""
    config = FoCaCacheConfig(cache_interval=3, granularity=granularity)
    model = apply_foca_cache(GLM.model(), config)
    state = CacheState(config) if scoped else None

    def run(seed=0):
        if state is None:
            return _glm(model, images, seed)
        state.reset()
        with cache_scope(model, state):
            return _glm(model, images, seed)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = run()
    stats = foca_cache_stats(model, state)
    assert stats["bypasses"] == {reasons.WRITES: images}
    assert stats["restarts"] == {}
    assert (stats["full_steps"], stats["skipped_steps"]) == (5, 5)
    torch.testing.assert_close(actual, _glm(GLM.model(), images), rtol=0.1, atol=0.1)
    run(seed=1)
    assert torch.equal(run(), actual)


def test_every_full_step_of_an_edit_is_the_models_own():
    model = apply_foca_cache(GLM.model(), FoCaCacheConfig(cache_interval=1))
    assert torch.equal(_glm(model), _glm(GLM.model()))


@pytest.mark.parametrize(
    ("name", "modes"),
    [
        ("SanaWMLTX2RefinerTransformer3DModel", ("inject",)),
        ("WanAnimate2Transformer3DModel", ("cached",)),
    ],
)
def test_other_classes_say_so_in_an_argument(name, modes):
    with torch.device("meta"):
        writes = find_spec(getattr(diffusers, name)()).writes
    for mode in (*modes, None):
        assert not writes({"kv_cache_mode": mode})
    for mode in ("extract", "capture_pre_rope", "inject_and_capture_post_rope"):
        assert writes({"kv_cache_mode": mode})


def _qwen():
    torch.manual_seed(0)
    config = GENERIC["QwenImage21Transformer2DModel"][0] | {"causal_condition": True}
    return diffusers.QwenImage21Transformer2DModel(**config).eval()


@torch.no_grad()
def _edit(model):
    """As QwenImage21Pipeline: after the first step the blocks run on the image alone."""
    call = dict(GENERIC["QwenImage21Transformer2DModel"][1])
    x = call.pop("hidden_states")
    call |= {"kv_cache": QwenImage21KVCache(3), "return_dict": False}
    mode = "extract"
    for now, after in itertools.pairwise(torch.linspace(1, 0, STEPS + 1).tolist()):
        with model.cache_context("cond"):
            output = model(x, timestep=torch.tensor([now]), kv_cache_mode=mode, **call)[0]
        x = x + (after - now) * output[:, -x.shape[1] :]
        mode = "cached"
    return x


@pytest.mark.parametrize("granularity", ["stack", "output"])
@pytest.mark.parametrize("warm_up", [1, 3])
def test_blocks_that_run_on_fewer_tokens_from_the_second_step_on(granularity, warm_up):
    model = apply_foca_cache(
        _qwen(),
        FoCaCacheConfig(
            cache_interval=3, granularity=granularity, disable_cache_before_step=warm_up
        ),
    )
    actual = _edit(model)
    stats = foca_cache_stats(model)
    torch.testing.assert_close(actual, _edit(_qwen()), rtol=0.1, atol=0.1)
    again = granularity == "stack" and warm_up == 1
    assert stats["fallbacks"] == ({reasons.OTHER_TOKENS: 1} if again else {})
    assert stats["full_steps"] + stats["skipped_steps"] == STEPS
    assert stats["skipped_steps"] >= 4
    assert stats["bypasses"] == stats["restarts"] == {}
    assert torch.equal(_edit(model), actual)
