"""docs/evaluation.md's tables, of the JSON files that `foca-dit eval` wrote."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from _measure import RESULTS
from _pages import filled

from foca_dit.evaluation import tables

PAGE = Path(__file__).parents[1] / "docs/evaluation.md"


def quick(file: str) -> str:
    """PSNR by budget in all settings, and where the other metrics are."""
    found = json.loads((RESULTS / file).read_text())
    return (
        tables.report(found["rows"], tables.as_markdown, found["pooled"], metrics=False)
        + f"\n\nAll metrics of these rows: `benchmarks/results/{file}`; `foca-dit eval --quick` "
        "prints them."
    )


def closeness(file: str) -> str:
    """PSNR to the full run by budget, and why rows are missing."""
    rows = json.loads((RESULTS / file).read_text())["rows"]
    steps, images, guidance = (rows[0][key] for key in ("steps", "images", "guidance_scale"))
    shift = rows[0]["shift"]
    sampler = "" if shift is None else f"shift {shift:g}, "
    said = f"{steps} steps, {sampler}guidance {guidance:g}, {images} samples, {tables.dates(rows)}"
    kinds = [tables.quality(rows, measure) for measure in tables.measures(rows)]
    parts = [f"**{said}**", *map(tables.as_markdown, kinds)]
    if missing := tables.absent(rows):
        parts.append(missing)
    return "\n\n".join(parts)


SECTIONS = {
    "eval": partial(quick, "eval-quick.json"),
    "flow": partial(closeness, "eval.json"),
    "seeds": partial(closeness, "eval-seeds.json"),
    "noise": partial(closeness, "eval-noise.json"),
    "video": partial(closeness, "eval-video.json"),
}


def updated(text: str) -> str:
    """The page with its tables brought up to date."""
    return filled(text, SECTIONS)
