"""Offloading, as far as it runs without an accelerator: groups to memory and disk, accelerate."""

import pytest
import torch
from cases import BY_NAME
from lanes import PAPER, Lanes, assert_close, cases
from models import tiny_flux_pipeline
from test_persistence import _generate

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats, remove_foca_cache


def _offload(model, kind, tmp_path, disk):
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
        offload_to_disk_path=str(tmp_path) if disk else None,
    )
    return model


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("offload_first", [True, False], ids=["offload-first", "cache-first"])
@pytest.mark.supports("group offload")
@cases()  # diffusers refuses to offload DiT in groups
def test_groups(case, kind, disk, offload_first, tmp_path):
    """Gates of a skipped step are read from blocks that do not run: they must be there."""
    literal = case.model()
    reference = Lanes(literal, case.wrapped, ["one"] * 12)
    if offload_first:
        model = apply_foca_cache(_offload(case.model(), kind, tmp_path, disk), PAPER)
    else:
        model = _offload(apply_foca_cache(case.model(), PAPER), kind, tmp_path, disk)
    assert_close(case.draw(model), case.draw(literal))
    assert foca_cache_stats(model)["collapsed_skips"] == reference.skipped
    remove_foca_cache(model)
    assert_close(case.draw(model), case.draw(case.model()))


@pytest.mark.supports("group offload")
@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
def test_groups_of_a_video_model_with_shared_modulation(granularity, tmp_path):
    case = BY_NAME["wan"]
    config = FoCaCacheConfig(preset="paper", cache_interval=4, granularity=granularity)
    expected = case.draw(apply_foca_cache(case.model(), config))
    model = apply_foca_cache(_offload(case.model(), "block_level", tmp_path, True), config)
    assert_close(case.draw(model), expected)
    assert foca_cache_stats(model)["skipped_steps"] == 7


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(f"enable_{kind}_cpu_offload", marks=pytest.mark.supports(f"{kind} offload"))
        for kind in ("model", "sequential")
    ],
)
def test_pipelines_are_offloaded(how):
    pipeline, fresh = tiny_flux_pipeline(), tiny_flux_pipeline()
    config = FoCaCacheConfig(cache_interval=4, granularity="module")
    for p in (pipeline, fresh):
        apply_foca_cache(p, config)
    try:
        plain = tiny_flux_pipeline()
        getattr(plain, how)(device="cpu")
        _generate(plain)
    except (RuntimeError, TypeError, ValueError) as error:
        pytest.skip(f"{how} fails here without a cache, too: {str(error)[:60]}")
    getattr(pipeline, how)(device="cpu")
    for seed in range(2):
        assert torch.equal(_generate(pipeline, seed), _generate(fresh, seed))
    assert foca_cache_stats(pipeline)["skipped_steps"] == 2 * 6


@pytest.mark.supports("model offload")
@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@pytest.mark.parametrize("offload_first", [True, False], ids=["offload-first", "cache-first"])
def test_offload_that_is_set_up_anew_after_every_generation(granularity, offload_first):
    """A pipeline takes accelerate's hooks off and puts them on again: ours stay where they are."""
    config = FoCaCacheConfig(cache_interval=4, granularity=granularity)
    plain, fresh, pipeline = (tiny_flux_pipeline() for _ in range(3))
    apply_foca_cache(fresh, config)
    if offload_first:
        pipeline.enable_model_cpu_offload(device="cpu")
        apply_foca_cache(pipeline, config)
    else:
        apply_foca_cache(pipeline, config)
        pipeline.enable_model_cpu_offload(device="cpu")
    for seed in range(3):
        assert torch.equal(_generate(pipeline, seed), _generate(fresh, seed))
    assert foca_cache_stats(pipeline)["skipped_steps"] == 3 * 6
    if offload_first:
        pipeline.remove_all_hooks()
    remove_foca_cache(pipeline)
    for seed in range(3):
        assert torch.equal(_generate(pipeline, seed), _generate(plain, seed))


@pytest.mark.supports("sequential offload")
@cases("dit", "flux", "wan")
@torch.no_grad()
def test_accelerates_hooks_with_weights_that_are_away(case):
    """`cpu_offload` (sequential offload) keeps a layer's weights on `meta` until it runs."""
    from accelerate import cpu_offload

    literal, model = case.model(), case.model()
    reference = Lanes(literal, case.wrapped, ["one"] * 12)
    cpu_offload(model, torch.device("cpu"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    apply_foca_cache(model, PAPER)
    assert_close(case.draw(model), case.draw(literal))
    assert foca_cache_stats(model)["collapsed_skips"] == reference.skipped
