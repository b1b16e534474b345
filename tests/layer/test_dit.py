"""The cache in a real DiTTransformer2DModel: what is computed, removed, counted."""

import dataclasses

import pytest
import torch
from literal import wrap
from models import call_dit, draw, tiny_dit, tiny_dit_pipeline, tiny_flux

from foca_dit import (
    FoCaCacheConfig,
    FullSteps,
    StepMask,
    apply_foca_cache,
    foca_cache,
    foca_cache_stats,
    remove_foca_cache,
    schemes,
)
from foca_dit.adapters.hooks import find_hook

GRANULARITIES = ("module", "stack", "output")
# Histories as exact as the features: what is compared is the order of operations.
EXACT = FoCaCacheConfig(cache_interval=4, granularity="module", history_dtype=torch.float32)


def test_fused_cache_equals_the_papers_recursion_module_by_module():
    full_steps = (0, 1, 2, 6, 10)
    literal = tiny_dit()
    wrap(literal, {"transformer_blocks": ("attn1", "ff")}, full_steps)
    expected = draw(literal)
    model = tiny_dit()
    apply_foca_cache(model, dataclasses.replace(EXACT, preset="paper"))
    actual = draw(model)
    assert foca_cache_stats(model)["collapsed_skips"] == 12 - len(full_steps)
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)
    assert not torch.allclose(actual, draw(tiny_dit()), atol=1e-3)  # it did forecast


@pytest.mark.parametrize("scheme", ["foca", "taylorseer", "reuse"])
def test_collapsed_skip_equals_skipping_module_by_module(scheme):
    images = []
    for collapse in (True, False):
        model = apply_foca_cache(tiny_dit(), dataclasses.replace(EXACT, scheme=scheme))
        find_hook(model).collapse = collapse
        images.append(draw(model))
        stats = foca_cache_stats(model)
        assert stats["skipped_steps"] == 7
        assert stats["collapsed_skips"] == (7 if collapse else 0)
    torch.testing.assert_close(*images, rtol=1e-5, atol=1e-5)


def test_a_skipped_step_embeds_every_class_once():
    """And hands each sample the gates of its own."""
    images, embedded = [], []
    for collapse in (True, False):
        model = apply_foca_cache(tiny_dit(), EXACT)
        find_hook(model).collapse = collapse
        if collapse:
            classes = model.transformer_blocks[1].norm1.emb.class_embedder
            classes.register_forward_pre_hook(lambda _, args: embedded.append(args[0].tolist()))
        images.append(draw(model, batch=12, guidance_scale=1.5))
    torch.testing.assert_close(*images, rtol=1e-5, atol=1e-5)
    null = 10
    assert embedded.count([*range(10), 0, 1, *12 * [null]]) == 5  # full steps
    assert embedded.count([*range(10), null]) == 7


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_interval_one_changes_nothing(granularity):
    model = tiny_dit()
    expected = draw(model)
    apply_foca_cache(model, FoCaCacheConfig(cache_interval=1, granularity=granularity))
    assert torch.equal(draw(model), expected)
    assert foca_cache_stats(model)["skipped_steps"] == 0


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_removal_leaves_the_model_as_it_was(granularity):
    model = tiny_dit()
    expected, before = draw(model), _attributes(model)
    apply_foca_cache(model, FoCaCacheConfig(granularity=granularity))
    assert not torch.equal(draw(model), expected)
    remove_foca_cache(model)
    assert torch.equal(draw(model), expected)
    assert _attributes(model) == before
    with pytest.raises(ValueError, match="has no cache"):
        foca_cache_stats(model)


def test_a_block_takes_its_cache_out_however_it_is_left():
    model = tiny_dit()
    expected = draw(model)
    with foca_cache(model, FoCaCacheConfig(cache_interval=5)) as cached:
        assert cached is model
        assert not torch.equal(draw(model), expected)
    assert torch.equal(draw(model), expected)
    with pytest.raises(KeyboardInterrupt), foca_cache(model):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="has no cache"):
        foca_cache_stats(model)


def _attributes(model):
    return {(name, key) for name, module in model.named_modules() for key in vars(module)}


def test_mask_caches_only_some_blocks():
    """Features under a mask of True are computed at every step; the result equals their literal."""
    mask = torch.ones(12, 6, dtype=torch.bool).numpy()
    mask[3:, :2] = False  # block 0: forecast from step 3 on, never computed again
    config = FoCaCacheConfig(schedule=StepMask(mask), granularity="module")
    model = apply_foca_cache(tiny_dit(), config)
    draw(model)
    stats = foca_cache_stats(model)
    assert (stats["full_steps"], stats["mixed_steps"], stats["skipped_steps"]) == (3, 9, 0)
    assert stats["forecasts"] == 2 * 9
    assert stats["commits"] == 6 * 3 + 4 * 9


def test_full_steps_of_ones_own():
    config = FoCaCacheConfig(schedule=FullSteps([0, 1, 3, 6]))
    model = apply_foca_cache(tiny_dit(), config)
    draw(model, steps=10)
    stats = foca_cache_stats(model)
    assert (stats["full_steps"], stats["skipped_steps"]) == (4, 6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_bytes_are_counted(granularity):
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig(granularity=granularity))
    draw(model, batch=2)
    nbytes = {"module": 6 * 2 * 16 * 32 * 2, "stack": 2 * 16 * 32 * 4, "output": 2 * 4 * 8 * 8 * 4}
    assert foca_cache_stats(model)["nbytes"] == 3 * nbytes[granularity]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_half_precision_models_and_histories(dtype, granularity):
    model = tiny_dit().to(dtype)
    x = torch.randn(2, 4, 8, 8, dtype=dtype)
    timesteps = [1000.0 - 50 * i for i in range(8)]
    config = FoCaCacheConfig(granularity=granularity, cache_interval=3)
    exact = apply_foca_cache(tiny_dit(), config)
    expected = call_dit(exact, timesteps, x.float())
    for history_dtype in (None, torch.float32):
        apply_foca_cache(model, dataclasses.replace(config, history_dtype=history_dtype))
        outputs = call_dit(model, timesteps, x)
        remove_foca_cache(model)
        for ours, theirs in zip(outputs, expected, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.float(), theirs, rtol=0.1, atol=0.1)


def test_gradients_run_uncached_and_say_so():
    model = apply_foca_cache(tiny_dit(), FoCaCacheConfig())
    x = torch.randn(1, 4, 8, 8)
    arguments = {"timestep": torch.tensor([500.0]), "class_labels": torch.tensor([1])}
    with pytest.warns(UserWarning, match=r"runs uncached: gradients are enabled"):
        model(x, **arguments).sample.sum().backward()
    model(x, **arguments)
    (reason,) = foca_cache_stats(model)["bypasses"]
    assert foca_cache_stats(model)["bypasses"][reason] == 2


@pytest.mark.parametrize("granularity", ["stack", "output"])
def test_so_do_gradients_of_an_argument_alone(granularity):
    """The weights are frozen and the prompt is what is trained."""
    model, x = tiny_flux().requires_grad_(False), torch.randn(1, 6, 4)
    fixed = {"img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3), "timestep": torch.ones(1)}
    fixed["pooled_projections"] = torch.randn(1, 32)

    def gradient():
        prompt = torch.ones(1, 5, 32, requires_grad=True)
        model(x, encoder_hidden_states=prompt, **fixed).sample.square().sum().backward()
        return prompt.grad

    expected = gradient()
    apply_foca_cache(model, FoCaCacheConfig(granularity=granularity))
    with pytest.warns(UserWarning, match="runs uncached: an argument requires a gradient"):
        assert torch.equal(gradient(), expected)


@pytest.mark.parametrize("config", [{"cache_interval": 5}, 5, "default"])
def test_a_configuration_is_one(config):
    with pytest.raises(TypeError, match="argument 'config': expected a FoCaCacheConfig, got"):
        apply_foca_cache(tiny_dit(), config)


def test_a_mask_over_another_number_of_features_is_refused_at_once():
    config = FoCaCacheConfig(schedule=StepMask(torch.ones(12, 6, dtype=torch.bool).numpy()))
    with pytest.raises(ValueError, match=r"mask over the 1 features of .*, got one over 6"):
        apply_foca_cache(tiny_dit(), config)


def test_lora_like_modulation_is_evaluated_whole():
    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * 1.5

    images = []
    for collapse in (True, False):
        model = tiny_dit()
        for block in model.transformer_blocks:
            block.norm1.linear.__class__ = Adapted
        apply_foca_cache(model, EXACT)
        find_hook(model).collapse = collapse
        images.append(draw(model))
    torch.testing.assert_close(*images, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_pipeline(granularity, guidance_scale):
    def generate(pipeline, seed=0):
        return pipeline(
            class_labels=[1, 2],
            guidance_scale=guidance_scale,
            num_inference_steps=10,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images

    plain, pipeline = tiny_dit_pipeline(), tiny_dit_pipeline()
    config = FoCaCacheConfig(cache_interval=5, granularity=granularity)
    apply_foca_cache(pipeline, config)
    first = generate(pipeline)
    stats = foca_cache_stats(pipeline)
    # A random model jumps at the first step of DDIM, which the cache takes for a new generation.
    assert stats["skipped_steps"] >= 3
    assert stats["full_steps"] + stats["skipped_steps"] == 10
    assert (first != generate(plain)).any()
    generate(pipeline, seed=1)
    assert (generate(pipeline) == first).all()
    remove_foca_cache(pipeline)
    assert (generate(pipeline) == generate(plain)).all()


def test_the_preset_scheme_is_the_documented_one():
    settings = FoCaCacheConfig().resolve()
    assert settings.scheme == schemes.FoCa("rolling", feedback=0.5, first_slope=0.25)
