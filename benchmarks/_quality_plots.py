"""docs/quality.md's pictures: PSNR over full steps, one line per scheme, from quality.py's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _measure import RESULTS
from PIL import Image

from foca_dit.cli.chart import COLOURS, Chart, stack, write_picture

FIGURES = Path(__file__).parents[1] / "docs/figures"
PALETTE = 128  # colours kept: a picture stays small

# Lines in drawing order, the rows that each is made of, and one colour for it in all pictures.
ADAPTIVE = "adaptive"
LINES = {
    ADAPTIVE: {"schedule": "budget", "granularity": "stack"},
    "c = 1/2": {"schedule": "uniform", "scheme": "FoCa c=1/2", "time": "log_snr"},
    "c = 3/4": {"schedule": "uniform", "scheme": "FoCa c=3/4", "time": "log_snr"},
    "c = 1, steps": {"schedule": "uniform", "scheme": "FoCa c=1", "time": "step"},
    "TaylorSeer-1": {"schedule": "uniform", "scheme": "TaylorSeer-1"},
    "fewer steps": {"scheme": "fewer steps"},
}
COLOUR_OF = dict(zip(LINES, COLOURS, strict=False))
SHEETS = {
    "quality-50": ((1.0, 50), (3.0, 50)),
    "quality-few": ((1.0, 28), (3.0, 28), (1.0, 20), (3.0, 20)),
}

Rows = list[dict[str, Any]]


def chart(rows: Rows, shift: float, steps: int) -> Chart:
    """One setting, on the most samples that the adaptive interval was drawn for."""
    here = [row for row in rows if (row["shift"], row["steps"]) == (shift, steps)]
    samples = max(row["images"] for row in here if row.get("schedule") == "budget")
    here = [row for row in here if row["images"] == samples]
    lines = {
        name: [
            (float(row["full_steps"]), float(row["psnr"]))
            for row in here
            if all(row.get(key) == value for key, value in wanted.items())
        ]
        for name, wanted in LINES.items()
    }
    # Within the range of full steps that the adaptive interval was drawn for.
    least = min(x for x, _ in lines[ADAPTIVE])
    lines = {name: [p for p in points if p[0] >= least] for name, points in lines.items()}
    title = f"Shift {shift:g}, {steps} steps, {samples} images"
    return Chart(title, "full steps", "PSNR in dB to the full run", lines, colours=COLOUR_OF)


def write_plots(folder: Path = FIGURES) -> None:
    """Draws every sheet of results/quality-adaptive.json."""
    rows: Rows = json.loads((RESULTS / "quality-adaptive.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for name, settings in SHEETS.items():
        charts = [chart(rows, *setting).draw(width=560, height=360) for setting in settings]
        path = folder / f"{name}.png"
        write_picture(stack(charts).quantize(PALETTE, Image.Quantize.MAXCOVERAGE), path)
        print(f"written: {path} ({path.stat().st_size // 1000} kB)")
