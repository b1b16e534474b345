"""What the constants of the adaptive interval were weighed against, drawn beside the default.

    python benchmarks/trials.py [--images 16] [--seed 2]

Every variant differs from the default preset in one thing and draws the same images at the same
budgets, on all three trained models; the best uniform interval of quality.py's stands beside them.
Rows are written as they are measured, and those that the file already holds are not measured again.
`python benchmarks/report.py` puts the table into docs/quality.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from _measure import RESULTS
from quality import SCHEMES, UNIFORM, Bench, uniform

import foca_dit.schedules.sampler
from foca_dit import Adaptive, Interval, schemes
from foca_dit.config import MEASURED_FOCA
from foca_dit.schemes.base import Table


@dataclass(frozen=True)
class FeedbackByGap(schemes.FoCa):
    """FoCa with the paper's feedback after gaps of at most `short` steps, else with its own."""

    short: int = 3

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        near = anchors[-1] - anchors[-2] <= self.short
        scheme = schemes.FoCa(feedback=1.0 if near else self.feedback, first_slope=self.first_slope)
        return scheme._weights(tau, anchors, step)


@dataclass(frozen=True)
class HalfReturns(schemes.FoCa):
    """FoCa with the feedback at which half of an innovation returns in the next one.

    On uniform steps c (1 - 2^-(g-1)) of it returns after a gap of g: so c is 1 after gaps of one or
    two steps and falls to 1/2 after long ones.
    """

    def _weights(self, tau: list[float], anchors: list[int], step: int) -> Table:
        gap = anchors[-1] - anchors[-2]
        feedback = 0.5 / (1.0 - 2.0 ** (1 - gap)) if gap > 1 else 1.0
        scheme = schemes.FoCa(feedback=feedback, first_slope=self.first_slope)
        return scheme._weights(tau, anchors, step)


@dataclass(frozen=True)
class Variant:
    """What a trial changes.

    Attributes:
        schedule: arguments of `Adaptive` beside the budget.
        constants: of `foca_dit.schedules.sampler`, by name.
        models: on which it can make a difference; empty: all.
    """

    scheme: schemes.Scheme = MEASURED_FOCA
    schedule: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)
    models: tuple[str, ...] = ()


def _foca(**changed: Any) -> Variant:
    return Variant(replace(MEASURED_FOCA, **changed))


FLOWS, NOISE = ("flow", "video"), ("noise",)
VARIANTS = {
    "default": Variant(),
    "no first slope": _foca(first_slope=0.0),
    "half of the first slope": _foca(first_slope=0.5),
    "all of the first slope": _foca(first_slope=1.0),
    "c = 0 (TaylorSeer-1)": _foca(feedback=0.0),
    "c = 1/4": _foca(feedback=0.25),
    "c = 3/4": _foca(feedback=0.75),
    "c = 1": _foca(feedback=1.0),
    "c = 1 after gaps up to 2": Variant(FeedbackByGap(feedback=0.5, first_slope=0.25, short=2)),
    "c = 1 after gaps up to 3": Variant(FeedbackByGap(feedback=0.5, first_slope=0.25, short=3)),
    "c by gap, half returns": Variant(HalfReturns(first_slope=0.25)),
    "three full steps first": Variant(schedule={"first": 3}),
    "trust 0.2": Variant(schedule={"trust": 0.2}),
    "trust 0.6": Variant(schedule={"trust": 0.6}),
    "the newest curvature alone": Variant(schedule={"trust": 1.0}),
    "data std 3 (flow)": Variant(constants={"LARGE_STD": 3.0}, models=FLOWS),
    "data std 30 (flow)": Variant(constants={"LARGE_STD": 30.0}, models=FLOWS),
    "data std 1 (noise)": Variant(constants={"NOISE_STD": 1.0}, models=NOISE),
    "data std 3 (noise)": Variant(constants={"NOISE_STD": 3.0}, models=NOISE),
}
# Per model: shift, denoising steps, budgets.
CELLS: dict[str, tuple[tuple[float | None, int, tuple[int, ...]], ...]] = {
    "flow": (
        (1.0, 50, (26, 18, 12, 9)),
        (3.0, 50, (26, 18, 12, 9)),
        (1.0, 28, (15, 10, 7)),
        (3.0, 28, (15, 10, 7)),
        (1.0, 20, (11, 7, 5)),
        (3.0, 20, (11, 7, 5)),
    ),
    "noise": (
        (None, 50, (26, 18, 14, 12, 9)),
        (None, 28, (15, 10, 7)),
        (None, 20, (11, 7, 5)),
        (None, 100, (22, 12)),
    ),
    "video": ((3.0, 50, (26, 18, 12, 9)), (3.0, 28, (15, 10, 7)), (3.0, 20, (11, 7, 5))),
}


def measure(bench: Bench, setting: str) -> None:
    for shift, steps, budgets in CELLS[setting]:
        for budget in budgets:
            cell = {"setting": setting, "shift": shift, "steps": steps, "budget": budget}
            cell["granularity"] = "stack"
            for name, time_ in UNIFORM:
                key = {**cell, "variant": "uniform", "scheme": name, "time": time_}
                bench.cached(key, SCHEMES[name], Interval(*uniform(budget, steps)), time_)
            for name, variant in VARIANTS.items():
                if variant.models and setting not in variant.models:
                    continue
                with ExitStack() as patched:
                    for constant, value in variant.constants.items():
                        patched.enter_context(
                            patch.object(foca_dit.schedules.sampler, constant, value)
                        )
                    schedule = Adaptive(budget=budget, **variant.schedule)
                    bench.cached({**cell, "variant": name}, variant.scheme, schedule, "log_snr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--settings", nargs="+", default=list(CELLS), choices=CELLS)
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--out", type=Path, default=RESULTS / "trials.json")
    args = parser.parse_args()
    for setting in args.settings:
        measure(Bench(setting, args.images, args.seed, args.out, args.fresh), setting)
        args.fresh = False  # one file for all
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
