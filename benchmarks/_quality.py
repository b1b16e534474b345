"""docs/quality.md's tables, generated from the JSON files that quality.py writes."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from _measure import RESULTS, markdown
from _pages import filled
from _trial_tables import LOST, trials

from foca_dit.evaluation.tables import closeness

PAGE = Path(__file__).parents[1] / "docs/quality.md"

# What was drawn, by the file that holds it.
FILES = {
    "quality-adaptive.json": "Shift {shift:g}",
    "quality-adaptive-noise.json": "Noise prediction with DDIM, guidance 1.5",
    "quality-adaptive-video.json": "Video, shift {shift:g}",
}

# The setting of the first bars: 50 steps of the flow model as it is.
FIRST = "Shift 1, 50 steps"
FEW = 20  # denoising steps: below there is little to adapt

STORED_FILES = {
    "quality-histories.json": "Shift {shift:g}",
    "quality-histories-noise.json": FILES["quality-adaptive-noise.json"],
    "quality-histories-video.json": FILES["quality-adaptive-video.json"],
}

FID_FILE = "eval-fid.json"  # by foca-dit eval, as the page says

Rows = list[dict[str, Any]]


def read() -> Rows:
    """All rows, each with the `file` that it is from."""
    return [
        {**row, "file": file} for file in FILES for row in json.loads((RESULTS / file).read_text())
    ]


def updated(text: str) -> str:
    """The page with its tables brought up to date."""
    return filled(text, SECTIONS)


def distance() -> str:
    """Classifier-FID by full steps, of `foca-dit eval`'s rows."""
    found = json.loads((RESULTS / FID_FILE).read_text())
    head, *body = closeness(found["rows"], found["pooled"])
    row = found["rows"][0]
    images = row["images"] * len({each["seed"] for each in found["rows"]})
    where = row["environment"]
    said = f"Shift {row['shift']:g}, {row['steps']} steps, {images} images, {where['date']}"
    return f"**{said}**\n\n{markdown(head, body)}\n"


def histories() -> str:
    """What narrower histories cost: PSNR with float32, and how far the others are from it."""
    body = []
    for file, title in STORED_FILES.items():
        lines: dict[str, dict[str, dict[str, Any]]] = {}
        for row in json.loads((RESULTS / file).read_text()):
            lines.setdefault(row["case"], {})[row["history"]] = row
        for case, kept in lines.items():
            full = kept["float32"]
            line = [title.format(**full), case, f"{full['psnr_each']:.2f}"]
            for narrow in ("bfloat16", "float16"):
                line.append(f"{kept[narrow]['psnr_each'] - full['psnr_each']:+.3f}")
            for dtype in ("float32", "bfloat16"):
                line.append(f"{kept[dtype]['nbytes'] / 1e6:.1f}")
            body.append(line)
    head = ["setting", "case", "float32: dB", "bfloat16", "float16", "float32: MB", "half: MB"]
    return markdown(head, body)


def tables(rows: Rows) -> str:
    """One table per thing drawn, number of steps and number of samples; then the tolerances."""
    parts = []
    for _, group in itertools.groupby(sorted(rows, key=_order), key=_order):
        chosen = list(group)
        if not any(row.get("schedule") == "budget" for row in chosen):
            continue  # tolerances alone: in the table below
        title = f"{drawn(chosen[0])}, {chosen[0]['images']} samples"
        parts.append(f"**{title}**\n\n{setting(chosen)}\n")
    parts.append("**By tolerance** (full steps: dB)\n")
    return "\n".join([*parts, by_tolerance(rows), ""])


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    file = list(FILES).index(row["file"])
    return file, abs(row["steps"] - 50), row["shift"] or 0.0, -row["images"]


def drawn(row: dict[str, Any]) -> str:
    return f"{FILES[row['file']].format(shift=row['shift'])}, {row['steps']} steps"


def setting(rows: Rows) -> str:
    """PSNR by full steps: the adaptive interval by what it caches, the best uniform one, rivals."""
    adaptive = [r for r in rows if r.get("schedule") == "budget"]
    budgets = _descending(adaptive)
    lines: dict[str, dict[int, str]] = {}
    for row in adaptive:
        name = f"**adaptive, {row['granularity']}**{_in_time(row)}"
        lines.setdefault(name, {})[row["full_steps"]] = decibels(row)
    for budget in budgets:
        best = best_uniform(rows, budget, _psnr)
        if best is not None:
            name = f"{decibels(best)} ({best['scheme'].removeprefix('FoCa ')}, {best['time']})"
            short = "" if best["full_steps"] == budget else f" with {best['full_steps']}"
            lines.setdefault("best uniform", {})[budget] = name + short
    for row in rows:
        if row["scheme"] == "TaylorSeer-1" and row.get("schedule") == "uniform":
            lines.setdefault("TaylorSeer-1, uniform", {})[row["full_steps"]] = decibels(row)
    for row in rows:
        if row["scheme"] == "fewer steps":
            lines.setdefault("fewer steps", {})[row["full_steps"]] = decibels(row)
    body = [[name, *(values.get(b, "") for b in budgets)] for name, values in lines.items()]
    return markdown(["full steps", *map(str, budgets)], body)


def best_uniform(
    rows: Rows, budget: int, value: Callable[[dict[str, Any]], float]
) -> dict[str, Any] | None:
    """Of those with the most full steps within the budget: an interval has not every number."""
    within = [r for r in rows if r.get("schedule") == "uniform" and r["full_steps"] <= budget]
    most = max((r["full_steps"] for r in within), default=0)
    return max((r for r in within if r["full_steps"] == most), key=value, default=None)


def balance(rows: Rows) -> str:
    """How far the default is from the best uniform interval, over the budgets of every sampler."""
    lines: dict[str, list[Gain]] = {}
    for _, group in itertools.groupby(sorted(rows, key=_order), key=_order):
        chosen = list(group)
        title = drawn(chosen[0])
        lines[title] = gains(chosen)
    others = [gain for title, found in lines.items() if title != FIRST for gain in found]
    lines[f"**all but the first, {FEW} steps or more**"] = [g for g in others if g.steps >= FEW]
    head = ["setting", "cells", "dB", "least", f"below {LOST:g}"]
    head += ["dB, each sample's own", "least", f"below {LOST:g}"]
    body = []
    for title, found in lines.items():
        row = [title, str(len(found))]
        for values in ([g.together for g in found], [g.each for g in found]):
            row += [f"{statistics.mean(values):+.1f}", f"{min(values):+.1f}"]
            row.append(str(sum(value < LOST for value in values)))
        body.append(row)
    return markdown(head, body)


@dataclass(frozen=True)
class Gain:
    """Decibels of the default over the best uniform interval at one number of full steps.

    Attributes:
        together: by PSNR of all samples together.
        each: by the mean of each sample's own PSNR.
    """

    steps: int
    together: float
    each: float


def gains(rows: Rows) -> list[Gain]:
    """Of one sampler, at every budget of the default preset."""
    found = []
    for row in rows:
        if row.get("schedule") != "budget" or _is_variant(row):
            continue
        ahead = []
        for measure in ("psnr", "psnr_each"):
            best = best_uniform(rows, row["full_steps"], itemgetter(measure))
            assert best is not None
            ahead.append(row[measure] - best[measure])
        found.append(Gain(row["steps"], *ahead))
    return found


def by_tolerance(rows: Rows) -> str:
    """What a tolerance buys in every setting: full steps and PSNR."""
    chosen = [r for r in rows if r.get("schedule") == "tol"]
    tolerances = sorted({r["tol"] for r in chosen})
    lines: dict[str, dict[float, str]] = {}
    for row in chosen:
        lines.setdefault(drawn(row) + _in_time(row), {})[row["tol"]] = (
            f"{row['full_steps']}: {decibels(row)}"
        )
    body = [[name, *(values.get(t, "") for t in tolerances)] for name, values in lines.items()]
    return markdown(["tol", *(f"{t:g}" for t in tolerances)], body)


def _descending(rows: Rows) -> list[int]:
    return sorted({row["full_steps"] for row in rows}, reverse=True)


def _is_variant(row: dict[str, Any]) -> bool:
    """Whether the row is not of the default preset."""
    return (row["granularity"], row["time"]) != ("stack", "log_snr")


def _in_time(row: dict[str, Any]) -> str:
    """Named where it is not the default's."""
    return "" if row["time"] == "log_snr" else f", time={row['time']}"


def decibels(row: dict[str, Any]) -> str:
    """The row's PSNR; "exact" where the images are the full run's."""
    return "exact" if row["psnr"] is None else f"{row['psnr']:.1f}"


SECTIONS = {
    "measured": lambda: tables(read()),
    "balance": lambda: balance(read()),
    "trials": trials,
    "histories": histories,
    "fid": distance,
}


def _psnr(row: dict[str, Any]) -> float:
    return math.inf if row["psnr"] is None else float(row["psnr"])
