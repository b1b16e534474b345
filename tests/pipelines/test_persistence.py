"""Copied, saved, moved and cast with the cache applied."""

import copy
import pickle

import diffusers
import pytest
import torch
from lanes import cases
from models import draw, draw_flux, flux_prompt, tiny_dit, tiny_flux, tiny_flux_pipeline

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats, remove_foca_cache
from foca_dit.adapters.hooks import find_hook

GRANULARITIES = ("module", "stack", "output")


def _config(granularity="module"):
    return FoCaCacheConfig(cache_interval=4, granularity=granularity)


@pytest.mark.supports("deepcopy")
@pytest.mark.parametrize("granularity", GRANULARITIES)
@cases("dit", "flux", "wan")
def test_a_deep_copy_caches_with_weights_and_histories_of_its_own(case, granularity):
    build, run = case.model, case.draw
    model = apply_foca_cache(build(), _config(granularity))
    cached = run(model)
    held = foca_cache_stats(model)
    twin = copy.deepcopy(model)
    assert foca_cache_stats(twin)["nbytes"] == foca_cache_stats(twin)["full_steps"] == 0
    # Other weights in the original must not show in the copy.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert torch.equal(run(twin), cached)
    assert foca_cache_stats(twin)["skipped_steps"] == held["skipped_steps"]
    assert foca_cache_stats(model)["full_steps"] == held["full_steps"]
    again = copy.deepcopy(twin)
    remove_foca_cache(twin)
    plain = build()
    assert torch.equal(run(twin), run(plain))
    assert torch.equal(run(again), cached)
    remove_foca_cache(again)
    assert torch.equal(run(again), run(plain))
    names = [(n, k) for n, m in plain.named_modules() for k in vars(m)]
    assert [(n, k) for n, m in again.named_modules() for k in vars(m)] == names


def test_a_copied_models_cache_context_and_end_of_pipeline_reach_the_copy():
    model = apply_foca_cache(tiny_flux(), _config())
    twin = copy.deepcopy(model)
    with twin.cache_context("cond"):
        draw_flux(twin)
    assert set(find_hook(twin).state.branches) == {"cond"}
    assert not find_hook(model).state.branches
    twin._diffusers_hook.reset_stateful_hooks()
    assert foca_cache_stats(twin)["nbytes"] == 0


def test_a_copied_pipeline():
    pipeline = tiny_flux_pipeline()
    apply_foca_cache(pipeline, _config())
    first = _generate(pipeline)
    twin = copy.deepcopy(pipeline)
    assert torch.equal(_generate(twin), first)
    assert foca_cache_stats(twin)["skipped_steps"] == foca_cache_stats(pipeline)["skipped_steps"]


def test_a_copy_of_a_model_with_other_hooks_of_diffusers_is_refused():
    """diffusers' own hooks, copied, would run the original's modules."""
    model = tiny_flux()
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    apply_foca_cache(model, _config())
    with pytest.raises(TypeError, match="copy the model first, then add hooks and cache"):
        copy.deepcopy(model)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_pickle_is_refused_until_the_cache_is_out(granularity):
    model = apply_foca_cache(tiny_flux(), _config(granularity))
    with pytest.raises(TypeError, match="call remove_foca_cache"):
        pickle.dumps(model)
    remove_foca_cache(model)
    pickle.loads(pickle.dumps(model))


def _generate(pipeline, seed=0, **options):
    prompt = {name: value.to(pipeline.dtype) for name, value in flux_prompt(seed).items()}
    return pipeline(
        **prompt,
        height=16,
        width=16,
        num_inference_steps=10,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **options,
    ).images


@pytest.mark.supports("save_pretrained")
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_save_pretrained_writes_what_it_would_without_a_cache(tmp_path, granularity):
    pipeline = tiny_flux_pipeline()
    expected = _generate(pipeline)
    keys = list(pipeline.transformer.state_dict())
    apply_foca_cache(pipeline, _config(granularity))
    cached = _generate(pipeline)
    assert list(pipeline.transformer.state_dict()) == keys
    pipeline.transformer.save_pretrained(tmp_path)
    assert torch.equal(_generate(pipeline), cached)
    loaded = tiny_flux_pipeline(seed=5)
    loaded.transformer = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path).eval()
    assert torch.equal(_generate(loaded), expected)
    apply_foca_cache(loaded, _config(granularity))
    assert torch.equal(_generate(loaded), cached)


@pytest.mark.supports("to dtype", "dtype")
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_cast_between_generations(granularity):
    """`to(dtype)` keeps the hooks; nothing of the old dtype's histories is left."""
    pipeline = tiny_flux_pipeline()
    apply_foca_cache(pipeline, _config(granularity))
    first = _generate(pipeline)
    for dtype in (torch.bfloat16, torch.float32):
        pipeline.to(dtype)
        fresh = tiny_flux_pipeline().to(torch.bfloat16).to(dtype)
        apply_foca_cache(fresh, _config(granularity))
        assert torch.equal(_generate(pipeline), _generate(fresh))
    assert not torch.equal(_generate(pipeline), first)  # the weights were rounded


@pytest.mark.supports("to device")
@cases("dit", "flux", "wan")
def test_moved_to_another_device_and_back(case):
    """The only other device here is `meta`, on which weights are lost: they are loaded again."""
    model = apply_foca_cache(case.model(), _config())
    expected, source = case.draw(model), case.model()
    model.to(device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model.to_empty(device="cpu")
    with torch.no_grad():
        for mine, theirs in zip(
            [*model.parameters(), *model.buffers()],
            [*source.parameters(), *source.buffers()],
            strict=True,
        ):
            mine.copy_(theirs)
    assert torch.equal(case.draw(model), expected)


def test_loading_other_weights_into_a_cached_model():
    model = apply_foca_cache(tiny_dit(), _config())
    draw(model)
    model.load_state_dict(tiny_dit(seed=3).state_dict())
    other = apply_foca_cache(tiny_dit(seed=3), _config())
    assert torch.equal(draw(model), draw(other))
