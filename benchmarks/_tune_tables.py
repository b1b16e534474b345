"""docs/tune.md's tables, generated from the JSON files of tuned.py and error_compensation.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from _measure import RESULTS, markdown
from _pages import filled

PAGE = Path(__file__).parents[1] / "docs/tune.md"

Row = dict[str, Any]


def updated(text: str, folder: Path = RESULTS) -> str:
    """The page with its tables brought up to date."""
    return filled(text, {name: partial(make, folder) for name, make in SECTIONS.items()})


def tuned(folder: Path) -> str:
    """Tuned plans beside what needs no tuning, by shift and full steps; their distance in words."""
    rows = json.loads((folder / "tuned.json").read_text())
    table = _table(rows, lambda row: f"shift {row['shift']:g}: {row['budget']}", "setting")
    gains, each = _gains(rows, "psnr"), _gains(rows, "psnr_each")
    words = (
        f"In the mean of these {len(gains)} a tuned plan is {fmean(gains):+.1f} dB from the "
        f"adaptive interval in log-SNR; at single ones {min(gains):+.1f} to {max(gains):+.1f} dB. "
        f"By each image's own PSNR it is {fmean(each):+.1f} dB, and {min(each):+.1f} to "
        f"{max(each):+.1f}."
    )
    return f"{table}\n\n{words} ({_where(rows)})"


def _gains(rows: Sequence[Row], measure: str) -> list[float]:
    """Of tuned plans over the adaptive interval, one for each shift and number of full steps."""
    values = {(row["setting"], row["shift"], row["budget"]): row[measure] for row in rows}
    cells = [key[1:] for key in values if key[0] == "tuned"]
    return [values["tuned", *cell] - values["adaptive, log_snr", *cell] for cell in cells]


def compensation(folder: Path) -> str:
    """GOC and EOC on what they compensate: one table per shift."""
    rows = json.loads((folder / "error-compensation.json").read_text())
    parts = []
    for shift in dict.fromkeys(row["shift"] for row in rows):
        chosen = [row for row in rows if row["shift"] == shift]
        table = _table(chosen, lambda row: f"{row['method']} {row['setting']:g}", "compensation")
        parts.append(f"Shift {shift:g}:\n\n{table}")
    return "\n\n".join([*parts, f"({_where(rows)})"])


SECTIONS = {"tuned": tuned, "compensation": compensation}


def _table(rows: Sequence[Row], column: Any, line: str) -> str:
    """PSNR by column, one line per value of `line`; the best of each column is bold."""
    columns = list(dict.fromkeys(map(column, rows)))
    best = {c: max(row["psnr"] for row in rows if column(row) == c) for c in columns}
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        bold = "**" if row["psnr"] == best[column(row)] else ""
        cell = f"{bold}{row['psnr']:.1f}{bold}"
        lines.setdefault(row[line], {})[column(row)] = cell
    body = [[name, *(cells.get(c, "") for c in columns)] for name, cells in lines.items()]
    return markdown(["", *columns], body)


def _where(rows: Sequence[Row]) -> str:
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    return f"commit {commits}, torch {rows[0]['torch']}, {rows[0]['date']}"
