"""docs/quality.md's tables, generated from the JSON files that quality.py writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from _measure import RESULTS, markdown

PAGE = Path(__file__).parents[1] / "docs/quality.md"
MARKERS = re.compile(r"(<!-- measured:begin -->\n).*?(<!-- measured:end -->)", re.DOTALL)

Rows = list[dict[str, Any]]


def write_tables() -> None:
    """Puts the tables of results/quality-adaptive.json between the page's markers."""
    rows: Rows = json.loads((RESULTS / "quality-adaptive.json").read_text())
    text = MARKERS.sub(rf"\g<1>{tables(rows)}\g<2>", PAGE.read_text())
    PAGE.write_text(text)
    print(f"written: {PAGE}")


def tables(rows: Rows) -> str:
    """One table per shift, number of steps and number of images; then the tolerances."""
    settings = sorted({(r["images"], r["shift"], r["steps"]) for r in rows}, key=_order)
    parts = []
    for images, shift, steps in settings:
        chosen = [
            r for r in rows if (r["images"], r["shift"], r["steps"]) == (images, shift, steps)
        ]
        parts.append(f"**Shift {shift:g}, {steps} steps, {images} images**\n\n{setting(chosen)}\n")
    return "\n".join([*parts, "**By tolerance** (full steps: dB)\n", by_tolerance(rows), ""])


def _order(setting: tuple[int, float, int]) -> tuple[Any, ...]:
    images, shift, steps = setting
    return abs(steps - 50), shift, -images


def setting(rows: Rows) -> str:
    """PSNR by full steps: the adaptive interval by what it caches, the best uniform one, rivals."""
    adaptive = [r for r in rows if r.get("schedule") == "budget"]
    budgets = sorted({r["full_steps"] for r in adaptive}, reverse=True)
    lines: dict[str, dict[int, str]] = {}
    for row in adaptive:
        name = f"**adaptive, {row['granularity']}**"
        lines.setdefault(name, {})[row["full_steps"]] = f"{row['psnr']:.1f}"
    uniform = [r for r in rows if r.get("schedule") == "uniform"]
    for budget in budgets:
        # An interval has not every number of full steps: then the next smaller one it has.
        most = max((r["full_steps"] for r in uniform if r["full_steps"] <= budget), default=0)
        best = max((r for r in uniform if r["full_steps"] == most), key=_psnr, default=None)
        if best is not None:
            name = f"{best['psnr']:.1f} ({best['scheme'].removeprefix('FoCa ')}, {best['time']})"
            short = "" if most == budget else f" with {most}"
            lines.setdefault("best uniform", {})[budget] = name + short
    for row in uniform:
        if row["scheme"] == "TaylorSeer-1":
            lines.setdefault("TaylorSeer-1, uniform", {})[row["full_steps"]] = f"{row['psnr']:.1f}"
    for row in rows:
        if row["scheme"] == "fewer steps":
            lines.setdefault("fewer steps", {})[row["full_steps"]] = f"{row['psnr']:.1f}"
    body = [[name, *(values.get(b, "") for b in budgets)] for name, values in lines.items()]
    return markdown(["full steps", *map(str, budgets)], body)


def by_tolerance(rows: Rows) -> str:
    """What a tolerance buys in every setting: full steps and PSNR."""
    chosen = [r for r in rows if r.get("schedule") == "tol"]
    tolerances = sorted({r["tol"] for r in chosen})
    lines: dict[str, dict[float, str]] = {}
    for row in chosen:
        name = f"shift {row['shift']:g}, {row['steps']} steps"
        lines.setdefault(name, {})[row["tol"]] = f"{row['full_steps']}: {row['psnr']:.1f}"
    body = [[name, *(values.get(t, "") for t in tolerances)] for name, values in lines.items()]
    return markdown(["tol", *(f"{t:g}" for t in tolerances)], body)


def _psnr(row: dict[str, Any]) -> float:
    return float(row["psnr"])
