"""What a user does to the weights: LoRA of peft, layerwise casting, int8 of torchao."""

from dataclasses import replace

import pytest
import torch
from lanes import PAPER, Lanes, assert_close, cases
from peft import LoraConfig
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from torchao.quantization import quantize_ as quantize

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats

# Among them: modulations that gates are read from, and `proj_out`, itself a cached feature.
TARGETS = r".*blocks.*\.(to_q|to_out\.0|net\.2|norm1\.linear|norm\.linear|proj_out)"


def _load(model, name, seed):
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False)
    model.add_adapter(config, name)


def _unload(model):
    model.unfuse_lora()
    model.unload_lora()


STAGES = {
    "none": lambda model: None,
    "loaded": lambda model: _load(model, "one", seed=1),
    "scaled": lambda model: model.set_adapters(["one"], weights=[0.3]),
    "switched": lambda model: (_load(model, "two", seed=2), model.set_adapters(["two"])),
    "both": lambda model: model.set_adapters(["one", "two"], weights=[0.5, 1.0]),
    "disabled": lambda model: model.disable_lora(),
    "enabled": lambda model: model.enable_lora(),
    "fused": lambda model: model.fuse_lora(),
    "unloaded": _unload,
}


@pytest.mark.supports("LoRA")
@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@cases()
@torch.no_grad()
def test_lora_loaded_switched_fused_and_unloaded_between_generations(case, granularity):
    """Each generation equals one of a model that was changed before the cache was applied."""
    config = FoCaCacheConfig(cache_interval=4, granularity=granularity)
    model, images = apply_foca_cache(case.model(), config), {}
    for count, (name, change) in enumerate(STAGES.items(), start=1):
        change(model)
        fresh = case.model()
        for earlier in list(STAGES.values())[:count]:
            earlier(fresh)
        apply_foca_cache(fresh, config)
        images[name] = case.draw(model, steps=5, batch=1)
        assert torch.equal(images[name], case.draw(fresh, steps=5, batch=1)), name
    assert foca_cache_stats(model)["skipped_steps"] == 2 * len(STAGES)
    assert torch.equal(images["none"], images["disabled"])
    assert_close(images["unloaded"], images["none"])  # fused and unfused: rounded twice
    assert_close(images["fused"], images["both"])
    for other in ("loaded", "scaled", "switched", "both"):
        assert (images["none"] - images[other]).abs().max() > 1e-3


@pytest.mark.supports("LoRA")
@cases("flux", "wan", "hunyuan-video")
@torch.no_grad()
def test_lora_loaded_into_a_cached_model_equals_the_recursion_around_every_module(case):
    model, literal = apply_foca_cache(case.model(), PAPER), case.model()
    _load(literal, "one", seed=1)
    reference = Lanes(literal, case.wrapped, ["one"] * 12)
    case.draw(model, seed=1)
    _load(model, "one", seed=1)
    assert_close(case.draw(model), case.draw(literal))
    assert foca_cache_stats(model)["collapsed_skips"] == 2 * reference.skipped


@pytest.mark.supports("layerwise casting")
@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16])
@pytest.mark.parametrize("cast_first", [True, False])
@cases("dit", "flux", "wan")
def test_layerwise_casting(case, storage, cast_first):
    def cast(model):
        model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
        return model

    literal = cast(case.model())
    reference = Lanes(literal, case.wrapped, ["one"] * 12)
    model = apply_foca_cache(cast(case.model()), PAPER) if cast_first else None
    model = model or cast(apply_foca_cache(case.model(), PAPER))
    drawn = [case.draw(m, dtype=torch.float32) for m in (model, literal)]
    assert_close(*drawn)
    assert foca_cache_stats(model)["collapsed_skips"] == reference.skipped


INT8 = {"weights": Int8WeightOnlyConfig, "activations": Int8DynamicActivationInt8WeightConfig}


@pytest.mark.supports("int8")
@pytest.mark.parametrize("kind", INT8)
@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@cases("dit", "flux", "wan")
def test_int8(case, kind, granularity):
    """torchao's weights, and its activations quantised as they come."""

    def quantised(model):
        quantize(model, INT8[kind]())
        return model

    config = replace(PAPER, granularity=granularity)
    model = apply_foca_cache(quantised(case.model()), config)
    drawn = case.draw(model)
    assert foca_cache_stats(model)["skipped_steps"] == 7
    later = quantised(apply_foca_cache(case.model(), config))
    assert torch.equal(case.draw(later), drawn)
    plain = case.draw(case.model())
    assert not torch.equal(case.draw(quantised(case.model())), plain)
    if granularity == "module" and kind == "weights":
        literal = quantised(case.model())
        Lanes(literal, case.wrapped, ["one"] * 12)
        assert_close(drawn, case.draw(literal))


@pytest.fixture
def _own_backend():
    """diffusers keeps the latest backend for all models."""
    from models import tiny_flux

    yield
    tiny_flux().set_attention_backend("native")


@pytest.mark.supports("attention backends")
@pytest.mark.usefixtures("_own_backend")
@pytest.mark.parametrize(
    "backend",
    [
        *("native", "_native_math", "_native_flash", "_native_efficient", "_native_cudnn"),
        pytest.param("flex", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("granularity", ["module", "stack"])
@cases()
def test_attention_backends(case, backend, granularity):
    """Those that need no other package; the cache is around the attention, not in it."""

    def build():
        model = case.model()
        model.set_attention_backend(backend)
        return model

    try:
        uncached = case.draw(build())
    except (RuntimeError, ValueError, NotImplementedError) as error:
        pytest.skip(f"diffusers has no {backend} on this device: {str(error)[:80]}")
    config = FoCaCacheConfig(preset="paper", cache_interval=4, granularity=granularity)
    model = apply_foca_cache(build(), config)
    native = case.model()
    native.set_attention_backend("native")
    expected = case.draw(apply_foca_cache(native, config))
    assert_close(case.draw(model), expected)
    assert (uncached - expected).abs().max() > 1e-3
    switched = apply_foca_cache(case.model(), config)
    switched.set_attention_backend(backend)
    assert torch.equal(case.draw(switched), case.draw(model))
