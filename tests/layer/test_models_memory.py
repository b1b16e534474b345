"""What a cache holds: what its features weigh, and no more after many generations."""

import gc

import pytest
import torch
from case import WIDTH
from cases import BY_NAME

from foca_dit import (
    FoCaCacheConfig,
    apply_foca_cache,
    foca_cache_stats,
    plan_foca_cache,
    remove_foca_cache,
)
from foca_dit.adapters.arguments import conditions
from foca_dit.adapters.dry_run import Allocated
from foca_dit.trajectory import FINGERPRINT_SIZE

pytestmark = pytest.mark.no_cover  # lines that other tests run, and tracing adds a third
WATCHED = ("flux", "hunyuan-video-i2v-token-replace", "flux2", "wan", "cogvideox")
RUN_LONG = ("flux", "wan")


def _live_tensors():
    gc.collect()
    return sum(1 for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))


@pytest.mark.supports("no leak")
@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@pytest.mark.parametrize("name", RUN_LONG)
def test_generations_leak_nothing(name, granularity):
    case = BY_NAME[name]
    model = apply_foca_cache(case.model(), FoCaCacheConfig(preset="paper", granularity=granularity))
    before = _live_tensors()
    case.draw(model, steps=5, batch=1)
    held, nbytes = _live_tensors(), foca_cache_stats(model)["nbytes"]
    for seed in range(20):
        case.draw(model, steps=5, batch=1, seed=seed)
    assert foca_cache_stats(model)["nbytes"] == nbytes
    assert _live_tensors() == held
    remove_foca_cache(model)
    assert _live_tensors() == before


@pytest.mark.supports("peak")
@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
@pytest.mark.parametrize("name", WATCHED)
def test_peak_on_top_of_the_uncached_run_is_what_was_planned(name, granularity):
    """Every storage that a generation allocates is counted; at most 5 % more than the plan said."""
    case, config = (
        BY_NAME[name],
        FoCaCacheConfig(preset="paper", cache_interval=4, granularity=granularity),
    )
    model, generator = case.model(), torch.Generator().manual_seed(0)
    call = case.inputs(2, generator) | {
        "hidden_states": torch.randn(2, *case.shape),
        "timestep": case.timestep(1.0, 2),
    }
    plan = plan_foca_cache(model, call, config, steps=6)
    with Allocated() as uncached:
        case.draw(model, steps=6)
    apply_foca_cache(model, config)
    with Allocated() as cached:
        case.draw(model, steps=6)
    on_top = cached.peak - uncached.peak
    assert foca_cache_stats(model)["skipped_steps"] == 3
    assert foca_cache_stats(model)["nbytes"] == plan.nbytes
    assert plan.nbytes <= plan.peak_nbytes
    fingerprints = sum(4 * min(v.numel(), FINGERPRINT_SIZE) for v in conditions(call))
    assert 0.8 * plan.peak_nbytes < on_top - fingerprints < 1.05 * plan.peak_nbytes
    if granularity == "module" and case.slots:  # sums in float32 stand beside the histories
        stream = 2 * case.tokens * WIDTH * 4
        assert plan.peak_nbytes >= plan.nbytes + case.slots * stream
