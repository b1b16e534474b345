"""The page docs/models.md on servers: its own lines, on a tiny model."""

from pathlib import Path

import torch
from models import tiny_dit

from foca_dit import CacheState, FoCaCacheConfig, apply_foca_cache, cache_scope

PAGE = Path(__file__).parents[2] / "docs/models.md"
TIMESTEPS = [900.0 - 75.0 * step for step in range(12)]


def _step(model, x, t):
    timestep = torch.full((len(x),), t)
    velocity = model(x, timestep=timestep, class_labels=torch.tensor([1])).sample
    return x - velocity[:, : x.shape[1]] / len(TIMESTEPS)


def _noise(seed):
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_requests_of_a_server_in_turn_are_cached_as_if_alone():
    (code,) = [b for b in PAGE.read_text().split("```python\n") if "requests = " in b]
    scope = {
        "model": tiny_dit(),
        "timesteps": TIMESTEPS,
        "samples": {"a": _noise(1), "b": _noise(2)},
        "step": _step,
    }
    exec(compile(code.partition("```")[0], str(PAGE), "exec"), scope)
    config = FoCaCacheConfig(cache_interval=3)
    for seed, name in ((1, "a"), (2, "b")):
        stats = scope["requests"][name].stats
        assert (stats.full_steps, stats.skipped_steps) == (6, 6)
        alone, x = apply_foca_cache(tiny_dit(), config), _noise(seed)
        with torch.inference_mode(), cache_scope(alone, CacheState(config)):
            for t in TIMESTEPS:
                x = _step(alone, x, t)
        assert torch.equal(scope["samples"][name], x)
