"""How close cached generations stay to the full one, at equal numbers of full steps.

    python benchmarks/quality.py adaptive   # the adaptive interval against all that is uniform
    python benchmarks/quality.py schemes    # every scheme in every time, uniform intervals
    python benchmarks/quality.py histories  # what a history in half precision costs, at `module`

On the shipped models, each with its own sampler, in one file each; `--settings` names some of them.
`python benchmarks/report.py` makes docs/quality.md's tables and pictures of the files.

A row is the PSNR in dB to the uncached run from the same noise: of all samples together, and the
mean of each sample's own, which scatters less. "fewer steps" spends the full steps without a cache.
Rows are written as they are measured, and those that a file already holds are not measured again: a
run can be cut into parts. `--fresh` begins anew. All of `adaptive` takes about an hour and a
quarter on one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from dataclasses import dataclass
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
    foca_cache,
    foca_cache_stats,
    schemes,
)
from foca_dit.analysis.metrics import mean_psnr, psnr, temporal_psnr
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


@dataclass(frozen=True)
class Sheet:
    """What is drawn of one sampler: one table of docs/quality.md.

    Attributes:
        shift: of the flow schedule; None: the model predicts noise.
        steps: denoising steps.
        budgets: of full steps; such as a uniform interval can have, so that rows compare.
        tolerances: of the adaptive interval.
        lines: granularity and time variable of further lines of the adaptive interval.
    """

    shift: float | None
    steps: int
    budgets: tuple[int, ...]
    tolerances: tuple[float, ...] = (0.01,)
    lines: tuple[tuple[str, str], ...] = ()


DEFAULT_LINE = ("stack", "log_snr")
BUDGETS_50 = (26, 18, 14, 12, 10, 9, 8, 7)
TOLERANCES_50 = (0.005, 0.01, 0.02, 0.04)
SHEETS = {
    "flow": (
        Sheet(
            1.0, 50, tuple(INTERVALS), TOLERANCES_50, (("output", "log_snr"), ("module", "log_snr"))
        ),
        Sheet(3.0, 50, BUDGETS_50, TOLERANCES_50),
        Sheet(1.0, 28, (15, 10, 7)),
        Sheet(3.0, 28, (15, 10, 7)),
        Sheet(1.0, 20, (11, 7, 5)),
        Sheet(3.0, 20, (11, 7, 5)),
    ),
    "noise": (
        Sheet(None, 50, BUDGETS_50, TOLERANCES_50, (("stack", "step"),)),
        Sheet(None, 28, (15, 10, 7)),
        Sheet(None, 20, (11, 7, 5)),
        Sheet(None, 8, (5,)),
        Sheet(None, 4, (3,)),
        Sheet(None, 100, (22, 12)),
    ),
    "video": (
        Sheet(3.0, 50, BUDGETS_50, TOLERANCES_50),
        Sheet(3.0, 28, (15, 10, 7)),
        Sheet(3.0, 20, (11, 7, 5)),
        Sheet(3.0, 8, (5,)),
        Sheet(3.0, 4, (3,)),
    ),
}
SCHEME_INTERVALS = (2, 3, 5, 7)
# Where rounding would show first: many full steps, and differences of high order.
STORED: tuple[tuple[str, str, str, Schedule], ...] = (
    ("FoCa c=1, N=2", "FoCa c=1", "step", Interval(2)),
    ("FoCa c=1, N=5", "FoCa c=1", "step", Interval(5)),
    ("TaylorSeer-2, N=3", "TaylorSeer-2", "step", Interval(3)),
    ("adaptive, 26 full steps", "default", "log_snr", Adaptive(budget=26)),
    ("adaptive, 18 full steps", "default", "log_snr", Adaptive(budget=18)),
    ("adaptive, 9 full steps", "default", "log_snr", Adaptive(budget=9)),
)
HISTORIES = (torch.float32, torch.bfloat16, torch.float16)


class Bench:
    """One model (with its images and seed) and the full runs to compare with."""

    def __init__(self, setting: str, images: int, seed: int, out: Path, fresh: bool) -> None:
        known = SETTINGS[setting]
        self.trained = load_trained(ROOT / known.folder)
        self.common = {"images": images, "seed": seed}
        self.given = {**self.common, "guidance_scale": known.guidance_scale}
        self.full: dict[tuple[float | None, int], torch.Tensor] = {}
        self.results = Results(out, "cpu")
        if out.exists() and not fresh:
            self.results.rows = json.loads(out.read_text())

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
        more["psnr_each"] = finite(mean_psnr(images, full))
        if images.dim() == 5:
            more["temporal_psnr"] = finite(temporal_psnr(images, full))
        self.results.add(**key, **self.common, **more)
        print({**key, **more}, flush=True)

    def fewer_steps(self, shift: float | None, steps: int, full_steps: int) -> None:
        key = {"scheme": "fewer steps", "shift": shift, "steps": steps, "full_steps": full_steps}
        if not self.known(key):
            self.add(key, self.draw(shift, full_steps))

    def cached(
        self,
        key: dict[str, Any],
        scheme: schemes.Scheme,
        schedule: Schedule,
        time_: str,
        history_dtype: torch.dtype | None = None,
    ) -> None:
        """One generation under a schedule; the pipeline's scheduler is known, as it is to users."""
        if self.known(key):
            return
        setting = self.setting(key["shift"], key["steps"])
        model, scheduler = setting.model, setting.sampler()
        pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
        config = FoCaCacheConfig(
            scheme=scheme,
            time=time_,
            schedule=schedule,
            granularity=key["granularity"],
            history_dtype=history_dtype,
        )
        with foca_cache(pipeline, config):
            images = setting.draw(scheduler=scheduler).images
            stats = foca_cache_stats(model)
        assert not stats["restarts"], stats
        more: dict[str, Any] = {"full_steps": stats["full_steps"], "nbytes": stats["nbytes"]}
        if stats["schedule"]:
            more |= {"taken": stats["schedule"], "predicted": sum_known(stats["predicted_errors"])}
        self.add(key, images, **more)


def finite(decibels: float) -> float | None:
    """None, JSON's null, for images that are exactly the full run's: it knows no infinity."""
    return decibels if math.isfinite(decibels) else None


def sum_known(values: list[float]) -> float:
    return sum(v for v in values if v == v)


def schemes_suite(bench: Bench, setting: str) -> None:
    """Every scheme and time on uniform intervals, 50 steps."""
    for shift, interval in itertools.product(SETTINGS[setting].shifts, SCHEME_INTERVALS):
        base = {"shift": shift or bench.trained.shift, "steps": 50}
        schedule = Interval(interval)
        bench.fewer_steps(**base, full_steps=len(schedule.full_steps(50)))
        for name, time_ in itertools.product(SCHEMES, TIMES):
            if name == "reuse" and time_ != "step":
                continue  # it knows no time
            key = {**base, "scheme": name, "time": time_, "interval": interval}
            bench.cached({**key, "granularity": "stack"}, SCHEMES[name], schedule, time_)


def adaptive_suite(bench: Bench, setting: str) -> None:
    """The adaptive interval at every budget and tolerance, and what it has to beat."""
    default = PRESETS["default"]["scheme"]
    for sheet in SHEETS[setting]:
        base = {"shift": sheet.shift, "steps": sheet.steps}
        for granularity, time_ in (DEFAULT_LINE, *sheet.lines):
            line = {**base, "scheme": "default", "time": time_, "granularity": granularity}
            for budget in sheet.budgets:
                key = {**line, "schedule": "budget", "budget": budget}
                bench.cached(key, default, Adaptive(budget=budget), time_)
            for tol in sheet.tolerances if (granularity, time_) == DEFAULT_LINE else ():
                key = {**line, "schedule": "tol", "tol": tol}
                bench.cached(key, default, Adaptive(tol=tol), time_)
        for budget in sheet.budgets:
            bench.fewer_steps(**base, full_steps=budget)
            interval, warmup = uniform(budget, sheet.steps)
            for name, time_ in UNIFORM:
                key = {**base, "scheme": name, "time": time_, "granularity": "stack"}
                key |= {"schedule": "uniform", "interval": interval, "warmup": warmup}
                bench.cached(key, SCHEMES[name], Interval(interval, warmup), time_)


def uniform(budget: int, steps: int) -> tuple[int, int]:
    """Interval and warm-up with that many full steps, or the next fewer."""
    if steps == 50 and budget in INTERVALS:
        return INTERVALS[budget]
    choices = itertools.product(range(2, steps), (3, 2))
    fits = ((n, w) for n, w in choices if len(Interval(n, w).full_steps(steps)) <= budget)
    return next(fits)


def histories_suite(bench: Bench, setting: str) -> None:
    """The same generations with histories in every dtype, module by module, 50 steps."""
    base = {"shift": bench.trained.shift, "steps": 50, "granularity": "module"}
    known = {**SCHEMES, "default": PRESETS["default"]["scheme"]}
    for (case, name, time_, schedule), dtype in itertools.product(STORED, HISTORIES):
        key = {**base, "case": case, "scheme": name, "time": time_}
        key["history"] = str(dtype).removeprefix("torch.")
        bench.cached(key, known[name], schedule, time_, dtype)


SUITES = {"schemes": schemes_suite, "adaptive": adaptive_suite, "histories": histories_suite}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--settings", nargs="+", choices=SHEETS, help="default: all; schemes: flow")
    parser.add_argument("--images", type=int, help="default: 128; others than adaptive: 32")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    args = parser.parse_args()
    alone = args.suite == "schemes"
    for setting in args.settings or (["flow"] if alone else SHEETS):
        name = args.suite if setting == "flow" else f"{args.suite}-{setting}"
        out = args.out / f"quality-{name}.json"
        images = args.images or (128 if args.suite == "adaptive" else 32)
        SUITES[args.suite](Bench(setting, images, args.seed, out, args.fresh), setting)
        print(f"written: {out}")


if __name__ == "__main__":
    main()
