"""Writes all generated tables, and quality's pictures, from the JSON in benchmarks/results.

    python benchmarks/report.py

The tables of README.md and of the pages in docs stand between comments such as
`<!-- measured:begin -->` and `<!-- measured:end -->`; a test holds pages and JSON equal.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import _evaluation
import _performance
import _quality
import _quality_plots
import _tune_tables
from _measure import RESULTS
from _pages import filled
from _performance import where

ROOT = Path(__file__).parents[1]


def load(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / name).read_text())
    return rows


def skip_tables() -> str:
    """What a skipped step costs, and the speedup of whole generations."""
    rows = load("skip-cpu.json")
    any_run = next(row for row in rows if row["case"] == "generation")
    caption = (
        f"The demo's model on a CPU, batch {any_run['batch']}, {any_run['steps']} steps, "
        f"N = {any_run['interval']} ({any_run['full_steps']} full steps): medians of all rounds, "
        "and in brackets where the middle half of them lies; ideal: steps / full steps, as if a "
        "skipped step were free; PSNR in dB to the full run. "
        f"{where(any_run)} (`python benchmarks/skip.py`; on another processor in "
        "docs/performance.md).\n\n"
    )
    return caption + _performance.skip_table(rows)


def quality_table() -> str:
    """How close the images stay to the full run, by number of full steps."""
    rows = [
        row
        for row in load("quality-adaptive.json")
        if (row["images"], row["shift"], row["steps"]) == (128, 1.0, 50)
        and row.get("schedule") != "tol"
    ]
    caption = (
        "\n\nHow close 128 garments stay to the full run of 50 steps: PSNR in dB (higher is "
        "closer) at equal numbers of full steps. Best uniform: the best of FoCa (c = 1/2, 3/4, 1) "
        "and TaylorSeer-1, caching the `stack` (`python benchmarks/quality.py adaptive`; "
        "other settings, some where uniform wins, in docs/quality.md).\n\n"
    )
    return caption + _quality.setting(rows)


OPERATORS = (
    "forecast K=3",
    "forecast_calibrate",
    "forecast_calibrate list n=8",
    "forecast_residual_ L=2 K=3",
    "forecast_residual_ L=8 K=3",
    "forecast_residual_ packed L=8 K=3",
    "commit_ K=3 R=0",
    "commit_ K=3 R=2",
)


def op_table() -> str:
    """How much faster each operator is than what else computes the same."""
    rows = load("ops-cpu.json")
    caption = (
        "\n\nThe operators on the CPU: times faster than other ways to compute the same, 8M "
        "bfloat16 elements per tensor, cold buffers. "
        f"{where(rows[0])} (`python benchmarks/ops.py ratios`).\n\n"
    )
    explained = (
        "\n\n*eager*: bfloat16 as published caches write it; *eager-in-place*: with as few buffers "
        "as can be. *eager-float32*: in float32 with one rounding, as the kernels. *compile*: that "
        "under `torch.compile`, into new tensors or in place. *foreach*: bfloat16 by "
        "`torch._foreach_*`, one call for all features. Above 100 % of a copy: an operator "
        "reads more than it writes, and writing costs more."
    )
    return caption + _performance.ratio_table(rows, OPERATORS).rstrip() + explained


def gpu_table() -> str:
    """The bars on an H200, or where they will stand."""
    if _performance.devices(RESULTS):
        return "\n\nOn an H200:\n\n" + _performance.bars(RESULTS) + "\n"
    return (
        "\n\n`make bench-gpu` tests the operators on a GPU, measures them beside all rivals, and "
        "fills the table of bars in "
        "[docs/performance.md](docs/performance.md#on-a-gpu).\n"
    )


def report() -> str:
    """All measured tables of the README."""
    return skip_tables() + quality_table() + op_table() + gpu_table()


def updated(text: str) -> str:
    """The README with its tables brought up to date."""
    return filled(text, {"measured": report})


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for page, update in (
        (ROOT / "README.md", updated),
        (_performance.PAGE, _performance.updated),
        (_tune_tables.PAGE, _tune_tables.updated),
        (_quality.PAGE, _quality.updated),
        (_evaluation.PAGE, _evaluation.updated),
    ):
        page.write_text(update(page.read_text()))
        print(f"written: {page}")
    _quality_plots.write_plots()


if __name__ == "__main__":
    main()
