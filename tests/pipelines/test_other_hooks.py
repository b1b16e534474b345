"""Other hooks of diffusers on the same model: caches, layer skip."""

import contextlib

import pytest
import torch
from diffusers import FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry, LayerSkipConfig, TaylorSeerCacheConfig
from diffusers.hooks.layer_skip import _apply_layer_skip_hook
from generic_cases import GENERIC, build
from lanes import cases
from models import draw_flux, tiny_flux
from test_guidance import _contexts

from foca_dit import (
    FoCaCacheConfig,
    apply_foca_cache,
    foca_cache_stats,
    remove_foca_cache,
)

CONFIG = FoCaCacheConfig(cache_interval=4, granularity="stack")
CACHES = {
    "FirstBlockCache": lambda: FirstBlockCacheConfig(threshold=0.1),
    "PyramidAttentionBroadcast": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
    "FasterCache": lambda: FasterCacheConfig(current_timestep_callback=lambda: 500),
    "TaylorSeerCache": lambda: TaylorSeerCacheConfig(),
}


@pytest.mark.supports("second cache")
@pytest.mark.parametrize("name", CACHES)
def test_a_cache_of_diffusers_that_is_already_there_is_refused(name):
    model = tiny_flux()
    model.enable_cache(CACHES[name]())
    with pytest.raises(ValueError, match=f"already uses {name} of diffusers.*disable_cache"):
        apply_foca_cache(model, CONFIG)
    model.disable_cache()
    apply_foca_cache(model, CONFIG)
    draw_flux(model)
    assert foca_cache_stats(model)["skipped_steps"] == 7


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@pytest.mark.supports("second cache")
@cases()
def test_a_cache_of_diffusers_enabled_later_makes_calls_run_without_ours(case, granularity):
    def run(model):
        with model.cache_context("cond"):
            return case.draw(model)

    plain = case.model()
    plain.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    model = apply_foca_cache(
        case.model(), FoCaCacheConfig(cache_interval=4, granularity=granularity)
    )
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.warns(UserWarning, match="runs uncached: FirstBlockCache of diffusers replaces"):
        actual = run(model)
    assert torch.equal(actual, run(plain))
    assert foca_cache_stats(model)["full_steps"] == foca_cache_stats(model)["skipped_steps"] == 0
    model.disable_cache()
    case.draw(model)
    assert foca_cache_stats(model)["skipped_steps"] == 7


@pytest.mark.parametrize("name", ["LatteTransformer3DModel", "Kandinsky5Transformer3DModel"])
def test_one_that_is_enabled_later_is_seen_in_every_class(name):
    _, arguments, unit, granularities = GENERIC[name]
    model = apply_foca_cache(build(name), FoCaCacheConfig(granularity=granularities[0]))
    model.enable_cache(CACHES["PyramidAttentionBroadcast"]())
    with torch.no_grad(), pytest.warns(UserWarning, match="PyramidAttentionBroadcast of diffusers"):
        model(**arguments, timestep=torch.full((1,), 0.5 * unit))
    assert foca_cache_stats(model)["full_steps"] == 0


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@pytest.mark.supports("layer skip")
@cases()
def test_layer_skip_runs_uncached_and_other_branches_are_cached_on(case, granularity):
    """A guider puts the hook on for its one call of a step, and takes it off again."""
    (path, *_) = case.wrapped
    skip = LayerSkipConfig(indices=[0], fqn=path, skip_attention=False)

    def guided(model):
        @contextlib.contextmanager
        def around(name):
            if name == "b":
                _apply_layer_skip_hook(model, skip, name="SkipLayerGuidance_0")
            yield
            if name == "b":
                HookRegistry.check_if_exists_or_initialize(model).remove_hook(
                    "SkipLayerGuidance_0", recurse=True
                )

        return _contexts(case, model, ["ab"] * 12, around)

    model = apply_foca_cache(
        case.model(), FoCaCacheConfig(cache_interval=4, granularity=granularity)
    )
    with pytest.warns(UserWarning, match="runs uncached: layer skip of diffusers replaces"):
        actual = guided(model)
    stats = foca_cache_stats(model)
    assert list(stats["bypasses"].values()) == [12]
    assert (stats["full_steps"], stats["skipped_steps"]) == (5, 7)
    torch.testing.assert_close(actual, guided(case.model()), rtol=0.1, atol=0.1)


def test_a_model_that_shares_blocks_with_a_cached_one_is_refused_and_disturbs_nothing():
    model, other = tiny_flux(), tiny_flux()
    other.single_transformer_blocks = model.single_transformer_blocks
    apply_foca_cache(model, CONFIG)
    expected = draw_flux(model)
    with pytest.raises(ValueError, match="foca_cache"):
        apply_foca_cache(other, CONFIG)
    assert torch.equal(draw_flux(model), expected)
    skipped = foca_cache_stats(model)["skipped_steps"]
    assert skipped > 0
    remove_foca_cache(model)
    apply_foca_cache(other, CONFIG)
    draw_flux(other)
    assert 2 * foca_cache_stats(other)["skipped_steps"] == skipped
