"""A LoRA that is switched, loaded, scaled or unloaded in the middle of a generation."""

import pytest
import torch
from models import flux_prompt, tiny_flux, tiny_flux_pipeline
from test_weights import _load, _unload

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats, reasons

TIMES = [1.0 - i / 12 for i in range(12)]
SWITCHED_AT = 5


def _nothing(model):
    """No LoRA yet."""


def _first(model):
    _load(model, "one", seed=1)


def _another(model):
    _load(model, "two", seed=2)
    model.set_adapters(["two"])


# what the generation begins with, and what is done to it then
CHANGES = {
    "loaded": (_nothing, _first),
    "disabled": (_first, lambda model: model.disable_lora()),
    "scaled": (_first, lambda model: model.set_adapters(["one"], weights=[0.3])),
    "another": (_first, _another),
    "unloaded": (_first, _unload),
}


@torch.no_grad()
def _outputs(model, times, branches=("cond",), around=lambda name: None, **extra):
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 6, 4, generator=generator), torch.randn(1, 5, 32, generator=generator)
    outputs = []
    for t in times:
        for name in branches:
            around(name)
            with model.cache_context(name):
                outputs += model(
                    x * (1 + t),
                    text,
                    text[:, 0],
                    torch.tensor([t]),
                    torch.zeros(6, 3),
                    torch.zeros(5, 3),
                    return_dict=False,
                    **extra,
                )
    return outputs


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@pytest.mark.parametrize("name", CHANGES)
def test_steps_after_a_change_know_none_before_it(name, granularity):
    """The features of another function of the model would be forecast on, up to the next full step,
    and its slope for longer.
    """
    config = FoCaCacheConfig(cache_interval=4, granularity=granularity)
    before, change = CHANGES[name]
    model, fresh = tiny_flux(), tiny_flux()
    before(model)
    before(fresh)
    apply_foca_cache(model, config)
    _outputs(model, TIMES[:SWITCHED_AT])
    assert foca_cache_stats(model)["skipped_steps"] == 2
    change(model)
    change(fresh)
    apply_foca_cache(fresh, config)
    actual, expected = (_outputs(each, TIMES[SWITCHED_AT:]) for each in (model, fresh))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected, strict=True))
    assert foca_cache_stats(model)["restarts"] == {reasons.RECONDITIONED: 1}
    assert foca_cache_stats(fresh)["skipped_steps"] == 3


def test_a_scale_in_the_call_that_changes():
    model = tiny_flux()
    _first(model)
    apply_foca_cache(model, FoCaCacheConfig(cache_interval=4))
    for scale, times in ((0.5, TIMES[:SWITCHED_AT]), (1.0, TIMES[SWITCHED_AT:])):
        _outputs(model, times, joint_attention_kwargs={"scale": scale})
    assert foca_cache_stats(model)["restarts"] == {reasons.RECONDITIONED: 1}


@pytest.mark.parametrize("scale", [0.3, 1 / 3, 0.7])
def test_one_that_stands_is_no_change(scale):
    """Though diffusers multiplies every layer's scale by it and divides again, in every call."""
    pipeline = tiny_flux_pipeline()
    _first(pipeline.transformer)
    apply_foca_cache(pipeline, FoCaCacheConfig(cache_interval=4))
    pipeline(
        **flux_prompt(0),
        height=16,
        width=16,
        num_inference_steps=20,
        joint_attention_kwargs={"scale": scale},
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    stats = foca_cache_stats(pipeline)
    assert stats["restarts"] == {}
    assert (stats["full_steps"], stats["skipped_steps"]) == (7, 13)


def test_one_for_each_guidance_branch_is_none_either():
    model = tiny_flux()
    _first(model)
    apply_foca_cache(model, FoCaCacheConfig(cache_interval=4))

    def around(name):
        model.enable_lora() if name == "cond" else model.disable_lora()

    _outputs(model, TIMES, ("cond", "uncond"), around)
    stats = foca_cache_stats(model)
    assert stats["restarts"] == {}
    assert (stats["full_steps"], stats["skipped_steps"]) == (10, 14)
