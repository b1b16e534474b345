"""Measures the caches on held-out images: quality and speed, of the full run and of every scheme.

    python examples/inf_dit/compare.py [--images 64] [--data FOLDER] [--out FILE.json]
    python examples/inf_dit/compare.py --table      # writes README.md's table from the JSON file

Every line starts from the same noise. Seconds are those of the best of `--repeats` runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from caching import BlockCaches
from pixels import bicubic, shrink
from upsample import load, timesteps, upsample

from foca_dit import Adaptive, FoCaCacheConfig, Interval, remove_foca_cache, schemes
from foca_dit.analysis.metrics import psnr
from foca_dit.calibration.inflection import inflection_steps
from foca_dit.calibration.means import record_means
from foca_dit.evaluation.metrics import ssim

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "examples/fashion_dit"), str(ROOT / "benchmarks")]
from _measure import RESULTS, Results, markdown  # noqa: E402
from _pages import filled  # noqa: E402
from data import DEFAULT_FOLDER, load_fashion_mnist  # noqa: E402

STEPS, WARMUP = 50, 3
INTERVALS = (3, 5)
CALIBRATION_IMAGES = 16  # of the training set, for GOC's statistics
PAGE = Path(__file__).with_name("README.md")

SCHEMES: dict[str, schemes.Scheme] = {
    "reuse (FORA)": schemes.Reuse(),
    "TaylorSeer-1": schemes.TaylorSeer(order=1),
    "TaylorSeer-2": schemes.TaylorSeer(order=2),
    "Newton-2": schemes.Newton(order=2),
    "HiCache-2": schemes.HiCache(order=2),
    "AB-Cache-3": schemes.AdamsBashforth(order=3),
    "BDF2 alone, rolling (= AB-Cache-2)": schemes.BDF2(reading="rolling"),
    "BDF2 alone, frozen slope": schemes.BDF2(reading="frozen"),
    "damped trend": schemes.DampedTrend(),
    "FoCa, rolling, c = 1 (preset paper)": schemes.FoCa(reading="rolling", feedback=1.0),
    "FoCa, rolling, c = 1/2": schemes.FoCa(reading="rolling", feedback=0.5),
    "FoCa, anchored": schemes.FoCa(reading="anchored"),
}

Settings = Iterator[tuple[str, str, FoCaCacheConfig, bool]]


def settings(goc: schemes.Scheme) -> Settings:
    """(name, group, configuration, whether all positions take the same full steps)."""
    everywhere = {**SCHEMES, "GOC": goc}
    for interval in INTERVALS:
        schedule = Interval(interval, warmup=WARMUP)
        budget = len(schedule.full_steps(STEPS))
        group = f"N = {interval}"
        for name, scheme in everywhere.items():
            config = FoCaCacheConfig(
                scheme=scheme, schedule=schedule, granularity="module", time="step"
            )
            yield name, group, config, True
        for granularity in ("module", "stack", "output"):
            config = FoCaCacheConfig(schedule=schedule, granularity=granularity, time="log_snr")
            yield f"FoCa, c = 1/2, log-SNR, {granularity}", group, config, True
        adaptive = Adaptive(budget=budget, timesteps=timesteps(STEPS)[:-1])
        for granularity in ("module", "stack"):
            config = FoCaCacheConfig(schedule=adaptive, granularity=granularity)
            yield f"FoCa, adaptive, {granularity}", group, config, True
            yield f"FoCa, adaptive per position, {granularity}", group, config, False


def find_goc(model: torch.nn.Module, low: torch.Tensor) -> schemes.Scheme:
    """GOC as published for FORA, its steps found on other images (all blocks at once)."""
    means = record_means(
        model, "module", [lambda: upsample(model, low, STEPS, seed=1, at_once=True)]
    )
    return schemes.GOC(1.2, inflection_steps(means))


def cached(
    model: torch.nn.Module,
    low: torch.Tensor,
    config: FoCaCacheConfig,
    together: bool,
    stats: dict[str, float],
) -> torch.Tensor:
    """Upsamples with a cache, and leaves its counts in `stats`."""
    caches = BlockCaches(model, config, together)
    try:
        return upsample(model, low, STEPS, scope=caches, memory=caches.memory)
    finally:
        stats.update(caches.stats())
        remove_foca_cache(model)


def measure(args: argparse.Namespace) -> None:
    """Runs every line and writes it down at once."""
    truth = load_fashion_mnist("t10k", args.data)[0][: args.images]
    other = load_fashion_mnist("train", args.data)[0][:CALIBRATION_IMAGES]
    low, model = shrink(truth), load()
    goc = find_goc(model, shrink(other))
    results = Results(args.out, "cpu")
    upsample(model, low, 2)  # compiles and fills caches
    full = upsample(model, low, STEPS)

    def add(name: str, group: str, images: torch.Tensor, **row: Any) -> None:
        closeness = psnr(images, full)
        results.add(
            name=name,
            group=group,
            images=args.images,
            steps=STEPS,
            psnr=psnr(images, truth),
            ssim=ssim(images, truth),
            psnr_full=None if math.isinf(closeness) else closeness,
            **row,
        )
        last = results.rows[-1]
        print(f"{name:<44}{group:<8}{last['psnr']:6.2f} {last['ssim']:.4f} {closeness:6.2f}", row)

    add("bicubic", "no cache", bicubic(low))
    add("full", "no cache", full, full_steps=STEPS)
    for interval in INTERVALS:
        count = len(Interval(interval, warmup=WARMUP).full_steps(STEPS))
        images = upsample(model, low, count)
        add("fewer steps", f"N = {interval}", images, full_steps=count)
    for name, group, config, together in settings(goc):
        stats: dict[str, float] = {}
        images = cached(model, low, config, together, stats)
        add(name, group, images, **stats)
    print(f"written: {args.out}")


def table(rows: list[dict[str, Any]]) -> str:
    """README.md's table: the best of every interval first."""
    where = rows[0]
    parts = [
        f"{where['images']} held-out images, {where['steps']} Euler steps, warm-up {WARMUP}; "
        f"{where['device']}, {where['threads']} threads, torch {where['torch']}, "
        f"commit {where['commit']}, {where['date']} (`python examples/inf_dit/compare.py`).",
    ]
    head = ["", "full steps", "PSNR", "SSIM", "PSNR to full", "ideal speedup", "MB"]
    for group in dict.fromkeys(row["group"] for row in rows):
        chosen = [row for row in rows if row["group"] == group]
        if group != "no cache":
            chosen.sort(key=lambda row: row["psnr_full"], reverse=True)
            parts.append(f"**{group}**")
        parts.append(markdown(head, [_cells(row) for row in chosen]))
    return "\n\n".join(parts) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["name"], "", f"{row['psnr']:.2f}", f"{row['ssim']:.4f}"]
    cells.append("" if row["psnr_full"] is None else f"{row['psnr_full']:.1f}")
    if "full_steps" not in row:
        return [*cells, "", ""]
    cells[1] = f"{row['full_steps']:g}"
    held = f"{row['nbytes'] / 1e6:.0f}" if "nbytes" in row else ""
    return [*cells, f"{row['steps'] / row['full_steps']:.2f}x", held]


def updated(text: str, rows: list[dict[str, Any]]) -> str:
    """The model card with its table brought up to date."""
    return filled(text, {"measured": lambda: table(rows)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--out", type=Path, default=RESULTS / "inf-dit.json")
    parser.add_argument("--table", action="store_true", help="only write README.md's table")
    args = parser.parse_args()
    if not args.table:
        measure(args)
    else:
        PAGE.write_text(updated(PAGE.read_text(), json.loads(args.out.read_text())))
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
