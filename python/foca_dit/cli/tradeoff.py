"""Quality over full steps: tuned plans beside uniform schemes and the installed cache-dit."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from foca_dit import FoCaCacheConfig, foca_cache, foca_cache_stats, schemes
from foca_dit.analysis.metrics import psnr
from foca_dit.cli.chart import Chart, Points

INTERVALS = (3, 4, 5, 6, 7)
UNIFORM: dict[str, schemes.Scheme] = {
    "FoCa, uniform": schemes.FoCa(feedback=0.5),
    "TaylorSeer-1, uniform": schemes.TaylorSeer(order=1),
    "reuse, uniform": schemes.Reuse(),
}

CACHE_DIT = "cache-dit, TaylorSeer-1"

Draw = Callable[[torch.nn.Module, int], torch.Tensor]


def measure_rivals(
    pipeline: Any, draw: Draw, seeds: Sequence[int], granularity: str, steps: int
) -> dict[str, list[tuple[float, float]]]:
    """(full steps, PSNR to the full run) by scheme; intervals that caching cannot use are left out.

    Args:
        pipeline: has the `.transformer`, without a cache, and the `.scheduler` that `draw` uses.
        draw: runs a generation of a model from a seed.
        seeds: to draw.
        granularity: what is cached.
        steps: of a generation.
    """
    from tqdm import tqdm

    model = pipeline.transformer
    full = torch.cat([draw(model, seed) for seed in seeds])
    lines: dict[str, list[tuple[float, float]]] = {}
    with tqdm(total=len(INTERVALS) * (len(UNIFORM) + has_cache_dit()), unit="setting") as bar:
        for name, scheme in UNIFORM.items():
            bar.set_description(name)
            for interval in INTERVALS:
                config = FoCaCacheConfig(
                    scheme=scheme, cache_interval=interval, granularity=granularity
                )
                with foca_cache(pipeline, config):
                    images = torch.cat([draw(model, seed) for seed in seeds])
                    count = foca_cache_stats(model)["full_steps"] / len(seeds)
                lines.setdefault(name, []).append((count, psnr(images, full)))
                bar.update()
        if has_cache_dit():
            bar.set_description("cache-dit")
            for interval in INTERVALS:
                count, images = with_cache_dit(model, draw, seeds, interval, steps)
                lines.setdefault(CACHE_DIT, []).append((count, psnr(images, full)))
                bar.update()
    return lines


def has_cache_dit() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("cache_dit") is not None


def with_cache_dit(
    model: torch.nn.Module, draw: Draw, seeds: Sequence[int], interval: int, steps: int
) -> tuple[float, torch.Tensor]:
    """The installed cache-dit (TaylorSeer of order 1) on the same full steps.

    It always computes the first block, so a skipped step is counted as one block's share of a full
    one. Its state is set up anew for every generation, on a copy of the model.

    Returns:
        (full steps, counted so; the samples).
    """
    import cache_dit

    from foca_dit.evaluation.installed import cache_dit_applied

    config: Any = model.config
    full = FoCaCacheConfig(cache_interval=interval).resolve().schedule.full_steps(steps)
    mask = [int(step in full) for step in range(steps)]
    images = []
    for seed in seeds:
        calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1)
        with cache_dit_applied(model, calibrator, mask) as own:
            images.append(draw(own, seed))
    count = len(full) + (steps - len(full)) / int(config.num_layers)
    return count, torch.cat(images)


def picture(lines: Mapping[str, Points], steps: int) -> Image.Image:
    """The chart, tuned plans first."""
    ordered = {"tuned": lines["tuned"], **{k: v for k, v in lines.items() if k != "tuned"}}
    title = "How close the images stay to the full run"
    chart = Chart(title, f"full steps of {steps}", "PSNR in dB (higher is closer)", ordered)
    return chart.draw()
