"""How close cached generations stay to the full one, by scheme, time variable and interval.

    python benchmarks/quality.py [--images 32] [--granularity stack] [--out FILE.json]

On the shipped Fashion-MNIST DiT with Euler steps, at shift 1 and 3 of the flow schedule. A row is
the PSNR in dB to the uncached run from the same noise, at the same number of full steps; the row
"fewer steps" spends them without a cache. The table sorts by the mean over all intervals.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from _measure import RESULTS, Results
from diffusers import FlowMatchEulerDiscreteScheduler
from tqdm import tqdm

from foca_dit import FoCaCacheConfig, apply_foca_cache, remove_foca_cache, schemes
from foca_dit.analysis.metrics import psnr
from foca_dit.analysis.sampling import sample
from foca_dit.cli.demo import load
from foca_dit.config import GRANULARITIES

WEIGHTS = Path(__file__).parents[1] / "examples/fashion_dit/weights"
TIMES = ("step", "sigma", "log_snr")
SHIFTS = (1.0, 3.0)
SCHEMES: dict[str, schemes.Scheme] = {
    "reuse": schemes.Reuse(),
    "TaylorSeer-1": schemes.TaylorSeer(order=1),
    "TaylorSeer-2": schemes.TaylorSeer(order=2),
    "BDF2 alone": schemes.BDF2(),
    "FoCa c=1/4": schemes.FoCa(feedback=0.25),
    "FoCa c=1/2": schemes.FoCa(feedback=0.5),
    "FoCa c=3/4": schemes.FoCa(feedback=0.75),
    "FoCa c=1": schemes.FoCa(feedback=1.0),
    "FoCa anchored": schemes.FoCa(reading="anchored"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=WEIGHTS)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--intervals", type=int, nargs="+", default=[2, 3, 5, 7])
    parser.add_argument("--granularity", choices=GRANULARITIES, default="stack")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "quality-schemes.json")
    args = parser.parse_args()

    model, _ = load(args.model)
    generator = torch.Generator().manual_seed(args.seed)
    noise = torch.randn(args.images, 1, 28, 28, generator=generator)
    labels = torch.arange(args.images) % 10

    def draw(shift: float, steps: int) -> torch.Tensor:
        return sample(model, FlowMatchEulerDiscreteScheduler(shift=shift), noise, labels, steps)

    results = Results(args.out, "cpu")
    settings = list(itertools.product(SHIFTS, TIMES, SCHEMES, args.intervals))
    full = {shift: draw(shift, args.steps) for shift in SHIFTS}
    for shift, interval in itertools.product(SHIFTS, args.intervals):
        config = FoCaCacheConfig(cache_interval=interval)
        steps = len(config.resolve().schedule.full_steps(args.steps))
        decibels = psnr(draw(shift, steps), full[shift])
        results.add(
            scheme="fewer steps",
            time="-",
            shift=shift,
            interval=interval,
            full_steps=steps,
            psnr=decibels,
        )
    for shift, time, name, interval in tqdm(settings, unit="run"):
        if name == "reuse" and time != "step":
            continue  # it knows no time
        config = FoCaCacheConfig(
            scheme=SCHEMES[name], time=time, cache_interval=interval, granularity=args.granularity
        )
        apply_foca_cache(model, config)
        images = draw(shift, args.steps)
        remove_foca_cache(model)
        steps = len(config.resolve().schedule.full_steps(args.steps))
        results.add(
            scheme=name,
            time=time,
            shift=shift,
            interval=interval,
            full_steps=steps,
            psnr=psnr(images, full[shift]),
            granularity=args.granularity,
            images=args.images,
        )
    print(table(results.rows, args.intervals))
    print(f"written: {args.out}")


def table(rows: list[dict], intervals: list[int]) -> str:
    """One line per scheme and time: PSNR by shift and interval, best mean first."""
    columns = list(itertools.product(SHIFTS, intervals))
    lines: dict[tuple[str, str], dict] = {}
    for row in rows:
        key = (row["shift"], row["interval"])
        lines.setdefault((row["scheme"], row["time"]), {})[key] = row["psnr"]
    ordered = sorted(lines.items(), key=lambda line: -sum(line[1].values()))
    head = f"{'scheme':<15}{'time':<9}" + "".join(f"  s{s:g} N{n:<2}" for s, n in columns)
    body = [
        f"{scheme:<15}{time:<9}" + "".join(f"{values[c]:>8.1f}" for c in columns)
        for (scheme, time), values in ordered
    ]
    return "\n".join([head, "-" * len(head), *body])


if __name__ == "__main__":
    main()
