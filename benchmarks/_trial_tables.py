"""docs/quality.md's table of what the controller's constants were weighed against."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from _measure import RESULTS, markdown

Row = dict[str, Any]
Cell = tuple[Any, ...]

LOST = -0.3  # dB below the best uniform interval from which on a cell counts as lost
GROUPS = {
    "flow, shift 1": ("flow", 1.0),
    "flow, shift 3": ("flow", 3.0),
    "noise": ("noise", None),
    "video": ("video", 3.0),
}


def trials(folder: Path = RESULTS) -> str:
    """Every variant beside the default, cell by cell on the same images, in decibels.

    By the mean of each image's own PSNR: of all images together, it is the few that change most.
    """
    rows = json.loads((folder / "trials.json").read_text())
    psnr, uniform = _by_cell(rows, "psnr_each")
    default = psnr["default"]
    body = []
    for name, cells in psnr.items():
        gains = {cell: value - default[cell] for cell, value in cells.items()}
        ahead = [value - uniform[cell] for cell, value in cells.items()]
        of_group = [[g for cell, g in gains.items() if cell[:2] == key] for key in GROUPS.values()]
        own = name == "default"
        body.append(
            [
                f"**{name}**" if own else name,
                "" if own else _mean(gains.values(), spread=True),
                *("" if own else _mean(group) for group in of_group),
                "" if own else f"{min(gains.values()):+.1f} .. {max(gains.values()):+.1f}",
                _mean(ahead),
                f"{sum(value < LOST for value in ahead)} of {len(ahead)}",
            ]
        )
    head = ["variant", "from the default, dB", *GROUPS, "single cells"]
    head += ["from the best uniform, dB", f"cells below {LOST:g}"]
    return f"{_caption(rows)}\n\n{markdown(head, body)}\n\n{_together(rows)}"


def _by_cell(rows: Sequence[Row], metric: str) -> tuple[dict[str, dict[Cell, float]], Any]:
    """By cell: every variant's value, and the best of the uniform intervals."""
    found: dict[str, dict[Cell, float]] = {}
    uniform: dict[Cell, float] = {}
    for row in rows:
        cell = tuple(row[key] for key in ("setting", "shift", "steps", "budget"))
        if row["variant"] == "uniform":
            uniform[cell] = max(uniform.get(cell, -math.inf), row[metric])
        else:
            found.setdefault(row["variant"], {})[cell] = row[metric]
    return found, uniform


def _together(rows: Sequence[Row]) -> str:
    """The default beside the best uniform interval by the PSNR of all images together."""
    found, uniform = _by_cell(rows, "psnr")
    ahead = [value - uniform[cell] for cell, value in found["default"].items()]
    below = sum(value < LOST for value in ahead)
    return (
        f"By the PSNR of all images together the default is {_mean(ahead)} dB from the best "
        f"uniform interval, below {LOST:g} in {below} of {len(ahead)} cells, at least "
        f"{min(ahead):+.1f}."
    )


def _mean(values: Iterable[float], spread: bool = False) -> str:
    """`spread`: with its standard error over cells."""
    found = list(values)
    if not found:
        return ""
    mean = f"{statistics.mean(found):+.2f}"
    if not spread or len(found) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(found) / math.sqrt(len(found)):.2f}"


def _caption(rows: Sequence[Row]) -> str:
    row = rows[0]
    said = f"{row['images']} images of seed {row['seed']}, commit {row['commit']}"
    return f"{said}, torch {row['torch']}, {row['date']}"
