"""Tuning: from a model and a budget of full steps to a plan, checked on other seeds.

Recorded once per model and sampler: Gram matrices of the features over the steps, and what an error
at each step does to the image. From these alone placements and weights are computed. The candidates
that come out are run on seeds of their own and the best is kept; a third set of seeds says how good
it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foca_dit.analysis.metrics import psnr
from foca_dit.api import foca_cache
from foca_dit.calibration.fit import NOISE
from foca_dit.calibration.grams import Array, record_grams
from foca_dit.calibration.influence import model_influence, probe_steps, sampler_influence
from foca_dit.calibration.joint import fit_jointly, refine
from foca_dit.calibration.placement import HISTORY, interval_costs, place
from foca_dit.config import FoCaCacheConfig
from foca_dit.files import write_whole
from foca_dit.origin import Origin
from foca_dit.plan import Plan
from foca_dit.tuned import TunedPlan

Draw = Callable[[int], torch.Tensor]
"""Runs one generation of a batch from a seed, and returns its samples."""

FORMAT = "foca-recording"

FORCED = (0, 1)
"""Always computed: at the second step the cache cannot yet tell a new generation from a branch."""


@dataclass(frozen=True)
class Seeds:
    """Three sets of seeds for `Draw`, of which none is used twice.

    Attributes:
        record: to record and fit from.
        choose: to choose among candidates.
        check: to say how good the choice is.
    """

    record: Sequence[int]
    choose: Sequence[int]
    check: Sequence[int]

    def __post_init__(self) -> None:
        every = [*self.record, *self.choose, *self.check]
        if not (self.record and self.choose and self.check) or len(every) != len(set(every)):
            raise ValueError(
                f"Seeds: expected three sets of seeds without a common one, got {self}"
            )


@dataclass(frozen=True, eq=False)
class Measured:
    """What tuning knows about a model and its sampler.

    Attributes:
        gram: float64 [S, S] of all features.
        influence: [S], what an error at a step makes of the image.
        origin: what it was measured on.
    """

    gram: Array
    influence: Array
    origin: Origin

    def save(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Writes it as JSON, whole or not at all, with what it was measured with."""
        data = {
            "format": FORMAT,
            "settings": dict(settings),
            "measured_on": self.origin.as_dict(),
            "gram": self.gram.tolist(),
            "influence": self.influence.tolist(),
        }
        write_whole(path, json.dumps(data) + "\n")

    @classmethod
    def load(cls, path: Path, settings: Mapping[str, Any]) -> Measured | None:
        """Reads what `save` wrote; None where it is not there or was measured with other settings.

        Raises:
            ValueError: The file is something else.
        """
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}")
            if data["settings"] != json.loads(json.dumps(dict(settings))):
                return None
            origin = Origin.from_dict(data["measured_on"])
            return cls(np.array(data["gram"]), np.array(data["influence"]), origin)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"tune: expected {path} to be a recording of foca-dit tune, got {error}: remove it"
            ) from error


def measure(
    model: torch.nn.Module,
    scheduler: Any,
    draw: Draw,
    granularity: str,
    seeds: Sequence[int],
    probes: int,
    done: Callable[[], Any] | None = None,
) -> Measured:
    """Runs the model in full, `len(seeds)` + 1 + `probes` generations.

    Args:
        model: a supported transformer, without a cache.
        scheduler: its sampler, deterministic.
        draw: runs a generation.
        granularity: what is to be cached.
        seeds: for `draw`; the first one is probed too.
        probes: at how many steps to measure what an error does.
        done: called after each generation.
    """
    parts = [record_grams(model, granularity, [partial(draw, seed)], done) for seed in seeds]
    first = parts[0]
    if any(part.timesteps != first.timesteps for part in parts):
        raise ValueError("measure: argument 'draw': expected the same timesteps from every seed")
    gram = sum((part.total() for part in parts), np.zeros((first.num_steps, first.num_steps)))
    steps = first.num_steps
    influence = model_influence(
        model,
        granularity,
        first.total(),
        sampler_influence(scheduler, steps),
        lambda: draw(seeds[0]),
        probe_steps(steps, probes) if probes and steps > 3 else [],
        done,
    )
    origin = Origin.of(model, granularity, scheduler, first.timesteps)
    return Measured(gram, influence, origin)


def candidates(measured: Measured, budget: int, noise: float = NOISE) -> dict[str, tuple[int, ...]]:
    """Placements worth trying, by how they were found."""
    gram, influence = measured.gram, measured.influence
    steps = len(gram)
    forced = FORCED[:steps]
    if not len(forced) <= budget < steps:
        raise ValueError(
            f"tune: argument 'budget': expected from {len(forced)} to {steps - 1} full steps (of "
            f"{steps}), got {budget}"
        )
    costs = interval_costs(gram, influence**2, HISTORY, noise, forced)
    best = place(costs, [budget])[budget].full_steps
    found = {
        "dynamic programming": best,
        "refined": refine(gram, influence, best, HISTORY, noise, kept=len(forced)),
        "even": even_steps(steps, budget, forced),
    }
    distinct: dict[str, tuple[int, ...]] = {}
    for name, full in found.items():
        if full not in distinct.values():
            distinct[name] = full
    return distinct


def even_steps(steps: int, budget: int, forced: Sequence[int]) -> tuple[int, ...]:
    """The forced steps and the step after them, then even gaps: the usual warm-up and interval."""
    warm = min(budget, len(forced) + 1)
    # The last gap reaches to the end of the run, as every other one reaches to the next full step.
    rest = np.linspace(warm - 1, steps, budget - warm + 2)[1:-1]
    return tuple(sorted({*range(warm), *(round(x) for x in rest)}))


def build_plan(
    gram: Array, influence: Array, full_steps: Sequence[int], noise: float = NOISE
) -> Plan:
    """The plan of a placement: a history of raw features, newest first, and fitted weights."""
    steps = len(gram)
    fitted = fit_jointly(gram, influence, full_steps, HISTORY, noise)
    shift = np.eye(HISTORY, HISTORY + 1, k=-1)
    shift[0, 0], shift[0, -1] = 0.0, 1.0
    start = np.zeros((HISTORY, HISTORY + 1))
    start[0, -1] = 1.0
    tables: list[Array] = []
    for step in range(steps):
        if step in full_steps:
            tables.append(shift if step else start)
        else:
            weights = np.zeros(HISTORY)
            weights[: len(fitted.weights[step])] = fitted.weights[step]
            tables.append(weights)
    description = {"name": "tabulated", "parameters": {}}
    times = tuple(float(step) for step in range(steps))
    return Plan(description, HISTORY, times, tuple(full_steps), tuple(tables))


def tune(
    model: torch.nn.Module,
    draw: Draw,
    measured: Measured,
    budget: int,
    seeds: Seeds,
    done: Callable[[], Any] | None = None,
) -> TunedPlan:
    """Places, fits, chooses and checks one plan.

    Args:
        model: the model measured, without a cache.
        draw: runs a generation, as for `measure`.
        measured: of `measure`.
        budget: full steps.
        seeds: those to choose and to check with are used here.
        done: called after each generation.

    Returns:
        The plan; its report has the candidates' PSNR to the full run on the seeds to choose with,
        and the plan's on the seeds to check with; None where images are equal or not finite.
    """

    def images(config: FoCaCacheConfig | None, use: Sequence[int]) -> torch.Tensor:
        drawn = []
        with nullcontext() if config is None else foca_cache(model, config):
            for seed in use:
                drawn.append(draw(seed))
                if done is not None:
                    done()
        return torch.cat(drawn)

    plans = {
        name: TunedPlan(build_plan(measured.gram, measured.influence, full), measured.origin, {})
        for name, full in candidates(measured, budget).items()
    }
    full = images(None, seeds.choose)
    chosen_by = {
        name: psnr(images(FoCaCacheConfig(plan=plan), seeds.choose), full)
        for name, plan in plans.items()
    }
    best = max(chosen_by, key=lambda name: _rank(chosen_by[name]))
    full = images(None, seeds.check)
    checked = psnr(images(FoCaCacheConfig(plan=plans[best]), seeds.check), full)
    report = {
        "budget": budget,
        "seeds": {"record": list(seeds.record), "check": list(seeds.check)},
        "placements": {
            name: {"full_steps": list(plans[name].plan.full_steps), "psnr": _decibels(value)}
            for name, value in chosen_by.items()
        },
        "chosen": best,
        "check_psnr": _decibels(checked),
    }
    return TunedPlan(plans[best].plan, measured.origin, report)


def _rank(decibels: float) -> float:
    """By which candidates are compared: images that are not numbers (NaN) come last."""
    return -math.inf if math.isnan(decibels) else decibels


def _decibels(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return round(value, 2) if math.isfinite(value) else None
