"""LoRA around the layers, int8 weights, layerwise casting, attention backends.

peft and torchao are not installed here. `LoRA` is what peft puts in the place of a Linear (the base
layer inside, `forward` adding a scaled product of two thin ones), and int8 is torch's own dynamic
quantisation.
"""

import pytest
import torch
from lanes import DIT, FLUX, PAPER, Lanes, assert_close
from models import draw, draw_flux, tiny_dit, tiny_flux

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats

# Among them: modulations that gates are read from, and `proj_out`, itself a cached feature.
TARGETS = ("attn.to_q", "attn.to_out.0", "ff.net.2", "norm1.linear", "norm.linear", "proj_out")


class LoRA(torch.nn.Module):
    def __init__(self, base, seed):
        super().__init__()
        self.base_layer, self.scale = base, 1.0
        self.lora_A = torch.nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = torch.nn.Linear(2, base.out_features, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for linear in (self.lora_A, self.lora_B):
            linear.weight.data.normal_(0, 0.3, generator=generator)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.scale * self.lora_B(self.lora_A(x))


def _blocks(model):
    return [*model.transformer_blocks, *model.single_transformer_blocks]


def load(model, targets=TARGETS):
    for index, block in enumerate(_blocks(model)):
        for path, module in list(block.named_modules()):
            if path in targets and isinstance(module, torch.nn.Linear):
                parent, _, name = path.rpartition(".")
                block.get_submodule(parent)._modules[name] = LoRA(module, index)


def unload(model, fuse=False):
    for block in _blocks(model):
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, LoRA):
                    if fuse:
                        delta = child.lora_B.weight @ child.lora_A.weight
                        child.base_layer.weight.data += child.scale * delta
                    module._modules[name] = child.base_layer


def scale(model, value):
    for module in model.modules():
        if isinstance(module, LoRA):
            module.scale = value


STAGES = (
    lambda model: None,
    load,
    lambda model: scale(model, 0.3),  # switched, as `set_adapters` does
    unload,
    load,
    lambda model: unload(model, fuse=True),
)


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@torch.no_grad()
def test_lora_loaded_switched_unloaded_and_fused_between_generations(granularity):
    """Each generation equals one of a model that was changed before the cache was applied."""
    config = FoCaCacheConfig(cache_interval=4, granularity=granularity)
    model = apply_foca_cache(tiny_flux(), config)
    images = []
    for count in range(1, len(STAGES) + 1):
        STAGES[count - 1](model)
        fresh = tiny_flux()
        for change in STAGES[:count]:
            change(fresh)
        apply_foca_cache(fresh, config)
        images.append(draw_flux(model))
        assert torch.equal(images[-1], draw_flux(fresh))
    assert foca_cache_stats(model)["skipped_steps"] == 7 * len(STAGES)
    assert torch.equal(images[0], images[3])
    for other in (1, 2, 5):
        assert (images[0] - images[other]).abs().max() > 1e-3


@torch.no_grad()
def test_lora_loaded_into_a_cached_model_equals_the_recursion_around_every_module():
    model, literal = apply_foca_cache(tiny_flux(), PAPER), tiny_flux()
    load(literal)
    reference = Lanes(literal, FLUX, ["one"] * 12)
    draw_flux(model, seed=1)
    load(model)
    assert_close(draw_flux(model), draw_flux(literal))
    assert foca_cache_stats(model)["collapsed_skips"] == 2 * reference.skipped


@pytest.mark.parametrize(
    ("build", "run", "wrapped"), [(tiny_dit, draw, DIT), (tiny_flux, draw_flux, FLUX)]
)
@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16])
@pytest.mark.parametrize("cast_first", [True, False])
def test_layerwise_casting(build, run, wrapped, storage, cast_first):
    def cast(model):
        model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
        return model

    literal = cast(build())
    reference = Lanes(literal, wrapped, ["one"] * 12)
    model = apply_foca_cache(cast(build()), PAPER) if cast_first else None
    model = model or cast(apply_foca_cache(build(), PAPER))
    assert_close(run(model), run(literal))
    assert foca_cache_stats(model)["collapsed_skips"] == reference.skipped


@pytest.mark.parametrize(
    ("build", "run", "wrapped"), [(tiny_dit, draw, DIT), (tiny_flux, draw_flux, FLUX)]
)
def test_int8_weights(build, run, wrapped):
    if not torch.backends.quantized.supported_engines:
        pytest.skip("torch was built without int8 kernels")

    def quantised():
        return torch.ao.quantization.quantize_dynamic(build(), {torch.nn.Linear}, torch.qint8)

    literal, model = quantised(), apply_foca_cache(quantised(), PAPER)
    assert not torch.equal(run(quantised()), run(build()))
    reference = Lanes(literal, wrapped, ["one"] * 12)
    # Inputs are quantised by their range, so rounding differences can move a whole step of 1/255.
    torch.testing.assert_close(run(model), run(literal), rtol=0.02, atol=0.02)
    assert foca_cache_stats(model)["collapsed_skips"] == reference.skipped


@pytest.fixture
def _own_backend():
    """diffusers keeps the latest backend for all models."""
    yield
    tiny_flux().set_attention_backend("native")


@pytest.mark.usefixtures("_own_backend")
@pytest.mark.parametrize(
    "backend", ["native", "_native_math", "_native_flash", "_native_efficient", "_native_cudnn"]
)
@pytest.mark.parametrize("granularity", ["module", "stack"])
def test_attention_backends(backend, granularity):
    """Those that need no other package; the cache is around the attention, not in it."""

    def build():
        model = tiny_flux()
        model.set_attention_backend(backend)
        return model

    try:
        uncached = draw_flux(build())
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"diffusers has no {backend} on this device: {str(error)[:80]}")
    config = FoCaCacheConfig(preset="paper", cache_interval=4, granularity=granularity)
    model = apply_foca_cache(build(), config)
    native = tiny_flux()
    native.set_attention_backend("native")
    expected = draw_flux(apply_foca_cache(native, config))
    assert_close(draw_flux(model), expected)
    assert (uncached - expected).abs().max() > 1e-3
    switched = apply_foca_cache(tiny_flux(), config)
    switched.set_attention_backend(backend)
    assert torch.equal(draw_flux(switched), draw_flux(model))
