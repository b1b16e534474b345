"""The cache in a real FluxTransformer2DModel: its life, its pipeline, what it refuses."""

import pytest
import torch
from models import draw_flux, flux_prompt, tiny_flux, tiny_flux_pipeline

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats, remove_foca_cache
from foca_dit.schemes import FoCa, run_reference


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_caches_and_is_removed_without_a_trace(granularity, branches):
    model = tiny_flux()
    full = draw_flux(model, branches=branches)
    apply_foca_cache(model, FoCaCacheConfig(granularity=granularity, cache_interval=4))
    cached = draw_flux(model, branches=branches)
    stats = foca_cache_stats(model)
    assert stats["full_steps"] == 5 * branches
    assert stats["skipped_steps"] == 7 * branches
    assert not torch.equal(cached, full)
    torch.testing.assert_close(cached, full, rtol=0.1, atol=0.1)
    assert torch.equal(draw_flux(model, branches=branches), cached)
    remove_foca_cache(model)
    assert torch.equal(draw_flux(model, branches=branches), full)


def test_output_equals_the_scheme_applied_to_the_models_outputs():
    """With a frozen input the outputs are a plain sequence: the scheme's own oracle fits."""
    model, steps = tiny_flux(), 10
    generator = torch.Generator().manual_seed(0)
    arguments = {
        "hidden_states": torch.randn(1, 6, 4, generator=generator),
        "encoder_hidden_states": torch.randn(1, 5, 32, generator=generator),
        "pooled_projections": torch.randn(1, 32, generator=generator),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(5, 3),
    }

    @torch.no_grad()
    def outputs():
        timesteps = [torch.tensor([1 - step / steps]) for step in range(steps)]
        return torch.stack([model(timestep=t, **arguments)[0] for t in timesteps])

    full = outputs()
    apply_foca_cache(
        model,
        FoCaCacheConfig(preset="paper", scheme="foca", granularity="output", cache_interval=3),
    )
    expected = run_reference(FoCa(feedback=0.5), full, [0, 1, 2, 5, 8])
    torch.testing.assert_close(outputs().double(), expected, rtol=1e-5, atol=1e-6)


def test_return_dict_is_kept():
    model = apply_foca_cache(tiny_flux(), FoCaCacheConfig(granularity="output"))

    class AsTuple(torch.nn.Module):
        def forward(self, **kwargs):
            (sample,) = model(**kwargs, return_dict=False)
            return type("Output", (), {"sample": sample})

    as_tuple = draw_flux(AsTuple())
    assert torch.equal(draw_flux(model), as_tuple)


def test_the_papers_preset_caches_module_by_module():
    model = apply_foca_cache(tiny_flux(), FoCaCacheConfig(preset="paper"))
    stats = foca_cache_stats(model)
    assert (stats["granularity"], stats["features"]) == ("module", 2 * 2 + 2)


@pytest.mark.parametrize("name", ["controlnet_block_samples", "controlnet_single_block_samples"])
def test_controlnet_residuals_run_uncached_and_say_so(name):
    residuals = [torch.randn(1, 6, 32) * 0.1 for _ in range(2)]
    model = tiny_flux()
    expected = draw_flux(model, **{name: residuals})
    apply_foca_cache(model, FoCaCacheConfig())
    with pytest.warns(UserWarning, match=f"runs uncached: the call passes {name}"):
        actual = draw_flux(model, **{name: residuals})
    assert torch.equal(actual, expected)
    assert sum(foca_cache_stats(model)["bypasses"].values()) == 12


def test_cache_context_names_the_branches():
    """diffusers' own way to tell guidance branches apart is heeded."""
    config = FoCaCacheConfig(cache_interval=4)
    model = apply_foca_cache(tiny_flux(), config)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 6, 4, generator=generator)
    texts = {name: torch.randn(1, 5, 32, generator=generator) for name in ("cond", "uncond")}
    with torch.no_grad():
        for step in range(8):
            for name, text in texts.items():
                with model.cache_context(name):
                    model(
                        hidden_states=x,
                        encoder_hidden_states=text,
                        pooled_projections=torch.zeros(1, 32),
                        timestep=torch.tensor([1 - step / 8]),
                        img_ids=torch.zeros(6, 3),
                        txt_ids=torch.zeros(5, 3),
                    )
    stats = foca_cache_stats(model)
    assert stats["full_steps"] + stats["skipped_steps"] == 16
    from foca_dit.adapters.hooks import find_hook

    assert set(find_hook(model).state.branches) == {"cond", "uncond"}
    model._diffusers_hook.reset_stateful_hooks()  # what a pipeline does when it ends
    assert foca_cache_stats(model)["nbytes"] == 0


@pytest.mark.supports("interrupt", "resolution", "number of steps")
def test_pipeline_through_changes_and_an_interruption():
    """Another prompt, size, step count, guidance, a run cut short: each as from a fresh cache."""

    def generate(pipeline, height=16, steps=10, true_cfg=1.0, seed=0, **options):
        negative = {f"negative_{key}": value for key, value in flux_prompt(seed + 1).items()}
        return pipeline(
            **flux_prompt(seed),
            **(negative if true_cfg > 1 else {}),
            true_cfg_scale=true_cfg,
            height=height,
            width=16,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
            **options,
        ).images

    def interrupt(pipeline, step, timestep, kwargs):
        pipeline._interrupt = step >= 4
        return kwargs

    config = FoCaCacheConfig(cache_interval=3)
    pipeline = tiny_flux_pipeline()
    apply_foca_cache(pipeline, config)
    for change in (
        {},
        {"seed": 3},
        {"height": 32},
        {"steps": 7},
        {"true_cfg": 3.0},
        {"true_cfg": 3.0, "seed": 5},
        {"callback_on_step_end": interrupt},
        {},
    ):
        fresh = tiny_flux_pipeline()
        apply_foca_cache(fresh, config)
        assert torch.equal(generate(pipeline, **change), generate(fresh, **change)), change
    assert foca_cache_stats(pipeline)["skipped_steps"] > 20
