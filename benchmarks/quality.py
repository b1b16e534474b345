"""How close cached generations stay to the full one, at equal numbers of full steps.

    python benchmarks/quality.py schemes    # every scheme in every time, uniform intervals
    python benchmarks/quality.py adaptive   # the adaptive interval against all that is uniform
    python benchmarks/quality.py adaptive --setting noise    # or video: the other trained models

`python benchmarks/report.py` makes docs/quality.md's tables and pictures of the JSON files.

On the shipped models, each with its own sampler. A row is the PSNR in dB to the uncached run from
the same noise; "fewer steps" spends the full steps without a cache. Rows are written as they are
measured, and those that the file already holds are not measured again: a run can be cut into parts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from _measure import RESULTS, Results

from foca_dit import (
    Adaptive,
    FoCaCacheConfig,
    Interval,
    Schedule,
    apply_foca_cache,
    foca_cache_stats,
    remove_foca_cache,
    schemes,
)
from foca_dit.analysis.metrics import psnr, temporal_psnr
from foca_dit.config import PRESETS
from foca_dit.evaluation.setting import Setting
from foca_dit.evaluation.trained import SETTINGS, load_trained

ROOT = Path(__file__).parents[1]
TIMES = ("step", "sigma", "log_snr")
SCHEMES: dict[str, schemes.Scheme] = {
    "reuse": schemes.Reuse(),
    "TaylorSeer-1": schemes.TaylorSeer(order=1),
    "TaylorSeer-2": schemes.TaylorSeer(order=2),
    "Newton-2": schemes.Newton(order=2),
    "BDF2 alone": schemes.BDF2(),
    "FoCa c=1/4": schemes.FoCa(feedback=0.25),
    "FoCa c=1/2": schemes.FoCa(feedback=0.5),
    "FoCa c=3/4": schemes.FoCa(feedback=0.75),
    "FoCa c=1": schemes.FoCa(feedback=1.0),
    "FoCa anchored": schemes.FoCa(reading="anchored"),
}
ADAPTIVE = {"default": PRESETS["default"]["scheme"], **SCHEMES}
# Full steps of 50 that a uniform interval can make: N by number of full steps, with a warm-up of 3
# (2 for the eleven that the paper uses on DiT).
INTERVALS = {26: (2, 3), 18: (3, 3), 14: (4, 3), 12: (5, 3), 11: (5, 2), 10: (6, 3), 9: (7, 3)}
INTERVALS |= {8: (8, 3), 7: (10, 3)}
# The uniform schemes that led the suite `schemes` at one interval or another, and TaylorSeer.
UNIFORM = (
    ("FoCa c=1/2", "log_snr"),
    ("FoCa c=3/4", "log_snr"),
    ("FoCa c=3/4", "step"),
    ("FoCa c=1", "step"),
    ("TaylorSeer-1", "step"),
)
TOLERANCES = (0.0015, 0.003, 0.006, 0.012, 0.024, 0.048)


class Bench:
    """One model (with its images and seed) and the full runs to compare with."""

    def __init__(self, args: argparse.Namespace) -> None:
        known = SETTINGS[args.setting]
        self.trained = load_trained(ROOT / known.folder)
        self.shifts = args.shifts or [shift or self.trained.shift for shift in known.shifts]
        self.given = {"images": args.images, "seed": args.seed}
        self.given["guidance_scale"] = known.guidance_scale
        self.common = {"images": args.images, "seed": args.seed}
        self.full: dict[tuple[float | None, int], torch.Tensor] = {}
        self.results = Results(args.out, "cpu")
        if args.out.exists() and not args.fresh:
            self.results.rows = json.loads(args.out.read_text())

    def setting(self, shift: float | None, steps: int) -> Setting:
        return self.trained.setting(shift, steps=steps, **self.given)

    def draw(self, shift: float | None, steps: int) -> torch.Tensor:
        return self.setting(shift, steps).draw().images

    def reference(self, shift: float | None, steps: int) -> torch.Tensor:
        if (shift, steps) not in self.full:
            self.full[shift, steps] = self.draw(shift, steps)
        return self.full[shift, steps]

    def known(self, key: dict[str, Any]) -> bool:
        key = {**key, **self.common}
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.results.rows)

    def add(self, key: dict[str, Any], images: torch.Tensor, **more: Any) -> None:
        full = self.reference(key["shift"], key["steps"])
        more["psnr"] = finite(psnr(images, full))
        if images.dim() == 5:
            more["temporal_psnr"] = finite(temporal_psnr(images, full))
        self.results.add(**key, **self.common, **more)
        print({**key, **more}, flush=True)

    def fewer_steps(self, shift: float | None, steps: int, full_steps: int) -> None:
        key = {"scheme": "fewer steps", "shift": shift, "steps": steps, "full_steps": full_steps}
        if not self.known(key):
            self.add(key, self.draw(shift, full_steps))

    def cached(
        self, key: dict[str, Any], scheme: schemes.Scheme, schedule: Schedule, time_: str
    ) -> None:
        """One generation under a schedule; the pipeline's scheduler is known, as it is to users."""
        if self.known(key):
            return
        setting = self.setting(key["shift"], key["steps"])
        model, scheduler = setting.model, setting.sampler()
        pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
        config = FoCaCacheConfig(
            scheme=scheme, time=time_, schedule=schedule, granularity=key["granularity"]
        )
        apply_foca_cache(pipeline, config)
        images = setting.draw(scheduler=scheduler).images
        stats = foca_cache_stats(model)
        remove_foca_cache(model)
        assert not stats["restarts"], stats
        more: dict[str, Any] = {"full_steps": stats["full_steps"]}
        if stats["schedule"]:
            more |= {"taken": stats["schedule"], "predicted": sum_known(stats["predicted_errors"])}
        self.add(key, images, **more)


def finite(decibels: float) -> float | None:
    """None, JSON's null, for images that are exactly the full run's: it knows no infinity."""
    return decibels if math.isfinite(decibels) else None


def sum_known(values: list[float]) -> float:
    return sum(v for v in values if v == v)


def schemes_suite(bench: Bench, args: argparse.Namespace) -> Iterator[None]:
    """Every scheme and time on uniform intervals."""
    for shift, interval in itertools.product(bench.shifts, args.intervals):
        schedule = Interval(interval)
        bench.fewer_steps(shift, args.steps, len(schedule.full_steps(args.steps)))
        for name, time_ in itertools.product(SCHEMES, TIMES):
            if name == "reuse" and time_ != "step":
                continue  # it knows no time
            key = {"scheme": name, "time": time_, "shift": shift, "steps": args.steps}
            key |= {"interval": interval, "granularity": args.granularity}
            bench.cached(key, SCHEMES[name], schedule, time_)
            yield


def adaptive_suite(bench: Bench, args: argparse.Namespace) -> Iterator[None]:
    """The adaptive interval at every budget, and what it has to beat."""
    shifts, steps = bench.shifts, args.steps
    budgets = [n for n in INTERVALS if n < steps] if args.budgets is None else args.budgets
    for shift in shifts:
        base = {"shift": shift, "steps": steps}
        for name, granularity, time_ in itertools.product(
            args.adaptive, args.granularities, args.times
        ):
            line = {**base, "scheme": name, "time": time_, "granularity": granularity}
            for budget in budgets:
                key = {**line, "schedule": "budget", "budget": budget}
                bench.cached(key, ADAPTIVE[name], Adaptive(budget=budget), time_)
                yield
            for tol in args.tolerances:
                key = {**line, "schedule": "tol", "tol": tol}
                bench.cached(key, ADAPTIVE[name], Adaptive(tol=tol), time_)
                yield
        if not args.rivals:
            continue
        for budget in budgets:
            bench.fewer_steps(shift, steps, budget)
            yield
        for (name, time_), budget in itertools.product(UNIFORM, budgets):
            interval, warmup = uniform(budget, steps)
            for granularity in args.granularities:
                key = {**base, "scheme": name, "time": time_, "granularity": granularity}
                key |= {"schedule": "uniform", "interval": interval, "warmup": warmup}
                bench.cached(key, SCHEMES[name], Interval(interval, warmup), time_)
                yield


def uniform(budget: int, steps: int) -> tuple[int, int]:
    """Interval and warm-up with that many full steps, or the next fewer."""
    if steps == 50 and budget in INTERVALS:
        return INTERVALS[budget]
    choices = itertools.product(range(2, steps), (3, 2))
    fits = ((n, w) for n, w in choices if len(Interval(n, w).full_steps(steps)) <= budget)
    return next(fits)


SUITES = {"schemes": schemes_suite, "adaptive": adaptive_suite}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--setting", choices=SETTINGS, default="flow")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shifts", type=float, nargs="+", help="the setting's own")
    parser.add_argument("--intervals", type=int, nargs="+", default=[2, 3, 5, 7])
    parser.add_argument("--granularity", default="stack", help="of the suite `schemes`")
    parser.add_argument("--granularities", nargs="+", default=["stack"])
    parser.add_argument("--budgets", type=int, nargs="+")
    parser.add_argument("--tolerances", type=float, nargs="*", default=list(TOLERANCES))
    parser.add_argument("--adaptive", nargs="+", default=["default"], choices=ADAPTIVE)
    parser.add_argument("--times", nargs="+", default=["log_snr"], choices=TIMES)
    parser.add_argument("--no-rivals", dest="rivals", action="store_false")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop in time; run again later")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    name = args.suite if args.setting == "flow" else f"{args.suite}-{args.setting}"
    args.out = args.out or RESULTS / f"quality-{name}.json"
    started = time.monotonic()
    for _ in SUITES[args.suite](Bench(args), args):
        if time.monotonic() - started > args.seconds:
            print("out of time: run again to go on")
            return
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
