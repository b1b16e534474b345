"""docs/quality.md's pictures: PSNR and FID over full steps, one line per scheme, from the JSON."""

from __future__ import annotations

import json
from pathlib import Path

from _measure import RESULTS
from _quality import FID_FILE, Rows, drawn, read
from PIL import Image

from foca_dit.cli.chart import COLOURS, Chart, stack, write_picture
from foca_dit.cli.distance import picture

FIGURES = Path(__file__).parents[1] / "docs/figures"
PALETTE = 128  # colours kept: a picture stays small

# Lines in drawing order, the rows that each is made of, and one colour for it in all pictures.
ADAPTIVE = "adaptive"
LINES = {
    ADAPTIVE: {"schedule": "budget", "granularity": "stack", "time": "log_snr"},
    "c = 1/2": {"schedule": "uniform", "scheme": "FoCa c=1/2", "time": "log_snr"},
    "c = 3/4": {"schedule": "uniform", "scheme": "FoCa c=3/4", "time": "log_snr"},
    "c = 1, steps": {"schedule": "uniform", "scheme": "FoCa c=1", "time": "step"},
    "TaylorSeer-1": {"schedule": "uniform", "scheme": "TaylorSeer-1"},
    "fewer steps": {"scheme": "fewer steps"},
}
COLOUR_OF = dict(zip(LINES, COLOURS, strict=False))
FLOW, NOISE, VIDEO = (f"quality-adaptive{name}.json" for name in ("", "-noise", "-video"))
SHEETS: dict[str, tuple[tuple[str, float | None, int], ...]] = {
    "quality-50": ((FLOW, 1.0, 50), (FLOW, 3.0, 50)),
    "quality-few": ((FLOW, 1.0, 28), (FLOW, 3.0, 28), (FLOW, 1.0, 20), (FLOW, 3.0, 20)),
    "quality-models": ((NOISE, None, 50), (VIDEO, 3.0, 50)),
}
FID_SHEET = "quality-fid"


def chart(rows: Rows, file: str, shift: float | None, steps: int) -> Chart:
    """One setting, on the most samples that the adaptive interval was drawn for."""
    wanted_here = (file, shift, steps)
    here = [row for row in rows if (row["file"], row["shift"], row["steps"]) == wanted_here]
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
    title = f"{drawn(here[0])}, {samples} samples"
    return Chart(title, "full steps", "PSNR in dB to the full run", lines, colours=COLOUR_OF)


def write_plots(folder: Path = FIGURES) -> None:
    """Draws every sheet, and the FID."""
    rows = read()
    folder.mkdir(parents=True, exist_ok=True)
    sheets = {
        name: stack([chart(rows, *setting).draw(width=560, height=360) for setting in settings])
        for name, settings in SHEETS.items()
    }
    found = json.loads((RESULTS / FID_FILE).read_text())
    sheets[FID_SHEET] = picture(found["rows"], found["pooled"])
    for name, sheet in sheets.items():
        path = folder / f"{name}.png"
        write_picture(sheet.quantize(PALETTE, Image.Quantize.MAXCOVERAGE), path)
        print(f"written: {path} ({path.stat().st_size // 1000} kB)")
