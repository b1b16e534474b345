"""Tuned plans beside what needs no calibration, at equal full steps.

    python benchmarks/tuned.py [--images 128] [--budgets 7 9 12 18] [--out FILE.json]

On the shipped Fashion-MNIST DiT, granularity `module`, 50 Euler steps, at shift 1 and 3. A row is
the PSNR in dB to the uncached run from the same noise, over images that no plan has seen.
"adaptive" is FoCa with feedback 1/2 under `Adaptive(budget=..)`, in two time variables; "uniform"
the same scheme on as many full steps, evenly spread after a warm-up of three.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from _measure import RESULTS, Results
from diffusers import FlowMatchEulerDiscreteScheduler
from tqdm import tqdm

from foca_dit import (
    FoCaCacheConfig,
    FullSteps,
    foca_cache,
    foca_cache_stats,
)
from foca_dit.analysis.metrics import mean_psnr, psnr
from foca_dit.analysis.sampling import sample
from foca_dit.calibration.tune import Seeds, even_steps, measure, tune
from foca_dit.evaluation.trained import drawing, load
from foca_dit.schedules import Adaptive
from foca_dit.schemes import FoCa

WEIGHTS = Path(__file__).parents[1] / "examples/fashion_dit/weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=WEIGHTS)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--samples", type=int, default=8, help="recorded per plan")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--budgets", type=int, nargs="+", default=[7, 9, 12, 18])
    parser.add_argument("--shifts", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--append", action="store_true", help="to the rows that FILE has")
    parser.add_argument("--out", type=Path, default=RESULTS / "tuned.json")
    args = parser.parse_args()
    model, _ = load(args.model)
    results = Results(args.out, "cpu")
    if args.append and args.out.exists():
        results.rows += json.loads(args.out.read_text())
    noise = torch.randn(args.images, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(args.images) % 10

    for shift in args.shifts:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        full = sample(model, scheduler, noise, labels, args.steps)
        draw = partial(drawing(model, scheduler, args.samples, args.steps, 1.0), model)
        seeds = Seeds([1000], [1001], [1002])
        measured = measure(model, scheduler, draw, "module", seeds.record, probes=10)
        timesteps = measured.origin.timesteps
        foca = FoCa(feedback=0.5)
        for budget in tqdm(args.budgets, desc=f"shift {shift:g}"):
            even = FullSteps(even_steps(args.steps, budget, (0, 1)))
            adaptive = Adaptive(budget=budget, timesteps=timesteps)
            settings = {
                "tuned": FoCaCacheConfig(plan=tune(model, draw, measured, budget, seeds)),
                "adaptive, step": FoCaCacheConfig(
                    schedule=adaptive, granularity="module", time="step"
                ),
                "adaptive, log_snr": FoCaCacheConfig(
                    schedule=adaptive, granularity="module", time="log_snr"
                ),
                "uniform": FoCaCacheConfig(
                    scheme=foca, schedule=even, granularity="module", time="step"
                ),
            }
            for name, config in settings.items():
                with foca_cache(model, config):
                    images = sample(model, scheduler, noise, labels, args.steps)
                    done = foca_cache_stats(model)["full_steps"]
                results.add(
                    setting=name,
                    shift=shift,
                    budget=budget,
                    full_steps=done,
                    psnr=psnr(images, full),
                    psnr_each=mean_psnr(images, full),
                    images=args.images,
                    samples=args.samples,
                )
    print(table(results.rows))
    print(f"written: {args.out}")


def table(rows: list[dict]) -> str:
    """One line per setting: PSNR over all images, by shift and budget."""
    columns = list(dict.fromkeys((r["shift"], r["budget"]) for r in rows))
    lines: dict[str, dict] = {}
    for row in rows:
        key = (row["shift"], row["budget"])
        lines.setdefault(row["setting"], {})[key] = (row["psnr"], row["full_steps"])
    head = f"{'':<20}" + "".join(f"s{s:g} {b}".rjust(12) for s, b in columns)
    body = [
        f"{name:<20}" + "".join(f"{v[c][0]:>7.1f} ({v[c][1]:>2})" for c in columns)
        for name, v in lines.items()
    ]
    return "\n".join([head, *body])


if __name__ == "__main__":
    main()
