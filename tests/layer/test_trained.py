"""The shipped, really trained model: collapsed equals module by module, and caching pays."""

from pathlib import Path

import pytest
import torch

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats, remove_foca_cache
from foca_dit.adapters.hooks import find_hook
from foca_dit.analysis.metrics import psnr
from foca_dit.analysis.sampling import sample
from foca_dit.evaluation.trained import load

WEIGHTS = Path(__file__).parents[2] / "examples/fashion_dit/weights"


@pytest.fixture(scope="module")
def trained():
    return load(WEIGHTS)


@pytest.fixture
def drawing(trained):
    model, scheduler = trained
    noise = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    def draw():
        return sample(model, scheduler, noise, torch.arange(4), steps=20)

    yield model, draw, draw()
    if find_hook(model) is not None:
        remove_foca_cache(model)


@pytest.mark.parametrize("scheme", ["foca", "taylorseer"])
def test_collapsed_equals_module_by_module(drawing, scheme):
    model, draw, full = drawing
    images = []
    for collapse in (True, False):
        config = FoCaCacheConfig(
            scheme=scheme,
            cache_interval=4,
            granularity="module",
            history_dtype=torch.float32,
        )
        apply_foca_cache(model, config)
        find_hook(model).collapse = collapse
        images.append(draw())
        assert foca_cache_stats(model)["skipped_steps"] == 13  # full: 0, 1, 2, 6, 10, 14, 18
        remove_foca_cache(model)
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)
    assert (images[0] - full).abs().max() > 1e-2  # far more than rounding


def test_modules_kept_in_bfloat16_are_as_close_to_the_full_run(drawing):
    """The default for a float32 model: half the memory, and other images by rounding only."""
    model, draw, full = drawing
    decibels, nbytes = [], []
    for dtype in (None, torch.float32):
        config = FoCaCacheConfig(cache_interval=3, granularity="module", history_dtype=dtype)
        apply_foca_cache(model, config)
        decibels.append(psnr(draw(), full))
        nbytes.append(foca_cache_stats(model)["nbytes"])
        remove_foca_cache(model)
    assert nbytes[0] == nbytes[1] / 2
    assert decibels[0] != decibels[1]  # it did round
    assert decibels[0] == pytest.approx(decibels[1], abs=0.1)


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
def test_forecasting_beats_reusing(drawing, granularity):
    model, draw, full = drawing
    decibels = {}
    for scheme in ("reuse", "foca"):
        apply_foca_cache(
            model, FoCaCacheConfig(scheme=scheme, cache_interval=3, granularity=granularity)
        )
        decibels[scheme] = psnr(draw(), full)
        remove_foca_cache(model)
    assert decibels["foca"] > decibels["reuse"] + 2
