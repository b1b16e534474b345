"""The measured parts of docs/performance.md, generated from the files in benchmarks/results."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _bars
from _bars import Rows
from _measure import RESULTS, markdown
from _pages import filled

PAGE = Path(__file__).parents[1] / "docs/performance.md"
RIVALS = (
    "eager",
    "eager-in-place",
    "eager-float32",
    "foreach",
    "compile",
    "compile-in-place",
)
H200 = "nvidia-h200"
PARTS = ("ops", "skip", "commit", "e2e-flux", "e2e-dit", "e2e-video")


def load(folder: Path, name: str) -> Rows:
    """The rows of a file; none if it is not there."""
    path = folder / name
    rows: Rows = json.loads(path.read_text()) if path.exists() else []
    return rows


def where(row: dict[str, Any]) -> str:
    """The conditions of a measurement, for its caption."""
    threads = f"{row['threads']} thread" + "s" * (row["threads"] != 1)
    return (
        f"{row['device']}, {threads}, torch {row['torch']}, commit {row['commit']}, {row['date']}"
    )


def by_case(rows: Rows, *keys: str) -> dict[tuple[Any, ...], dict[str, dict[str, Any]]]:
    """Measured rows by case (and further columns), then by provider."""
    cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row.get("gbs"):
            key = (row["case"], *(row[k] for k in keys))
            cases.setdefault(key, {})[row["provider"]] = row
    return cases


def ratio_table(rows: Rows, only: tuple[str, ...] = ()) -> str:
    """How much faster each operator is than what else computes the same."""
    body = []
    for (case,), providers in by_case(rows).items():
        if only and case not in only:
            continue
        ours = providers["cpu-cpp"]
        ratios = [
            f"{providers[rival]['ms'] / ours['ms']:.1f}x" if rival in providers else ""
            for rival in RIVALS
        ]
        body.append([case, f"{ours['ms']:.2f}", f"{ours['gbs'] / ours['copy_gbs']:.0%}", *ratios])
    return markdown(["operator", "ms", "of a copy's bandwidth", *RIVALS], body)


# A GPU -------------------------------------------------------------------------------------------


def bars(folder: Path) -> str:
    """The bars on an H200, with what was measured."""
    rows = list(_bars.table_rows(lambda part: load(folder, f"gpu-{H200}-{part}.json")))
    return markdown(["what", "must reach on an H200", "measured", "command that fills it"], rows)


def devices(folder: Path) -> list[str]:
    """GPUs of which some part was measured, as file names have them."""
    ends = "|".join(PARTS)
    found = (re.fullmatch(rf"gpu-(.+)-({ends})\.json", path.name) for path in folder.iterdir())
    return sorted({match[1] for match in found if match})


def loops(folder: Path) -> str:
    """End to end: every method, on every device that was measured."""
    parts = []
    for device in devices(folder):
        rows = [
            row
            for kind in ("flux", "dit", "video")
            for row in load(folder, f"gpu-{device}-e2e-{kind}.json")
            if "ms" in row
        ]
        if rows:
            parts.append(f"{where(rows[0])}\n\n{_loop_table(rows)}")
    return (
        "\n\n".join(parts) or 'Not measured: `make bench-gpu PARTS="e2e-flux e2e-dit e2e-video"`.'
    )


def _loop_table(rows: Rows) -> str:
    body = []
    for row in rows:
        size = f"{row['model']}, batch {row['batch']}"
        size += f", {row['frames']} frames" if row["frames"] > 1 else ""
        body.append(
            [
                size,
                row["source"],
                row["mode"],
                f"{row['provider']}" + (f", N={row['interval']}" if row["interval"] else ""),
                f"{row['ms'] / 1e3:.2f}",
                _number(row["speedup"], "{:.2f}x"),
                f"{row['ideal']:.2f}x",
                _number(row["of_ideal"], "{:.0%}"),
                _number(row["peak_gb"], "{:.1f}"),
            ]
        )
    head = ["model", "code", "mode", "cache", "s", "speedup", "ideal", "of it", "peak GB"]
    return markdown(head, body)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def steps(folder: Path) -> str:
    """The whole skipped step of every model, its pieces and launches."""
    parts = []
    for device in devices(folder):
        rows = [
            row
            for row in load(folder, f"gpu-{device}-skip.json")
            if "ms" in row and row["case"].startswith("skipped step")
        ]
        if not rows:
            continue
        body = [
            [
                row["model"],
                row["case"].removeprefix("skipped step, ") + row["provider"].removeprefix("foca"),
                f"{row['ms']:.3f}",
                f"{row['share']:.2%}",
                _number(row["launches"], "{}"),
                ", ".join(f"{k} {v:.3f}" for k, v in row.get("pieces", {}).items()),
            ]
            for row in rows
        ]
        head = ["model", "cached", "ms", "of a full step", "launches", "pieces in ms"]
        parts.append(f"{where(rows[0])}\n\n{markdown(head, body)}")
    return "\n\n".join(parts) or "Not measured: `make bench-gpu PARTS=skip`."


# A CPU -------------------------------------------------------------------------------------------

# What was measured last, and the same on another processor.
PLACES = ("", "epyc")


def skips(folder: Path) -> str:
    """What a skipped step costs, on every processor."""
    parts = []
    for place in PLACES:
        rows = load(folder / place, "skip-cpu.json")
        if rows:
            parts.append(f"{where(rows[0])}\n\n{skip_table(rows)}")
    return "\n\n".join(parts) or "Not measured: `make bench`."


def skip_table(rows: Rows) -> str:
    """Skipped steps and whole generations by what is cached."""
    steps = {row["cached"]: row for row in rows if row["case"] == "skipped step"}
    runs = {row["cached"]: row for row in rows if row["case"] == "generation"}
    head = ["cached", "skipped / full step", "speedup", "ideal", "of the ideal", "PSNR", "cache MB"]
    body = [
        [
            f"`{way}`" + "".join(more),
            _ranged(steps[name], "share", ".1f"),
            f"{run['speedup']:.2f}x",
            f"{run['ideal']:.2f}x",
            _ranged(run, "of_ideal", ".0f"),
            f"{run['psnr']:.1f}",
            f"{steps[name]['cache_mb']:.1f}",
        ]
        for name, run in runs.items()
        for way, *more in [name.partition(",")]
    ]
    body += [
        ["no blocks: the model's embedding and head", _ranged(row, "share", ".1f"), *[""] * 5]
        for name, row in steps.items()
        if name not in runs
    ]
    return markdown(head, body)


def _ranged(row: dict[str, Any], name: str, form: str) -> str:
    """In percent."""
    value, low, high = (format(100 * x, form) for x in (row[name], *row[f"{name}_half"]))
    return f"{value}% ({low} to {high})"


def ratios(folder: Path) -> str:
    """All operators on one and on all threads, on every processor."""
    parts = []
    names = ("ops-cpu.json", "ops-cpu-1-thread.json")
    for place, name in itertools.product(PLACES, names):
        rows = load(folder / place, name)
        if rows:
            parts.append(f"{where(rows[0])}\n\n{ratio_table(rows)}")
    return "\n\n".join(parts) or "Not measured: `make bench`."


def calls(folder: Path) -> str:
    """What a call costs before it computes anything."""
    rows = [r for r in load(folder, "ops-cpu.json") if r["case"].startswith("call of ")]
    body = [[r["case"].removeprefix("call of "), f"{1e3 * r['ms']:.1f}"] for r in rows]
    return markdown(["one call on 64 elements", "microseconds"], body)


CALIBRATOR_FILES = {
    "calibrators-cpu.json": "As it comes",
    "epyc/calibrators-cpu.json": "As it comes",
    "calibrators-cpu-kept.json": "With freed memory kept by the C library",
}


def calibrators(folder: Path) -> str:
    """Times faster than cache-dit's calibrators, per job, size and dtype."""
    parts = []
    for name, note in CALIBRATOR_FILES.items():
        rows = load(folder, name)
        if not rows:
            continue
        cases = by_case(rows, "dtype", "elements")
        sizes = sorted({key[2] for key in cases})
        jobs = list(dict.fromkeys((key[0], key[1]) for key in cases))
        body = []
        for job, dtype in jobs:
            for ours, rival in _pairs(cases[job, dtype, sizes[0]]):
                cells = []
                for size in sizes:
                    of = cases.get((job, dtype, size), {})
                    both = ours in of and rival in of
                    cells.append(f"{of[rival]['ms'] / of[ours]['ms']:.1f}x" if both else "")
                how = ours.removeprefix("cpu-cpp").removeprefix(", ")
                what = f"{job}" + (f" ({how})" if how else "")
                body.append([what, rival.removeprefix("cache-dit "), dtype, *cells])
        head = ["job", "beside cache-dit's", "dtype", *(f"{s:,}" for s in sizes)]
        parts.append(f"{note}: {where(rows[0])}\n\n{markdown(head, body)}")
    return "\n\n".join(parts) or "Not measured: `make bench`."


def _pairs(providers: dict[str, Any]) -> list[tuple[str, str]]:
    rivals = [name for name in providers if name.startswith("cache-dit")]
    ours = [name for name in providers if name.startswith("cpu-cpp")]
    return [(a, b) for b in rivals for a in ours]


def lines(folder: Path) -> str:
    """Cost against the number of features: the fitted lines."""
    rows = load(folder, "features-cpu.json")
    if not rows:
        return "Not measured: `make bench`."
    names = {"cpu-cpp": "one launch", "packed": "one launch, packed", "copy": "a copy of as much"}
    kept = {"each": "128k elements each", "all": "2M elements in all"}
    body = [
        [
            kept[row["kept"]],
            names.get(row["provider"], row["provider"]),
            f"{1e3 * row['slope_ms']:.1f}",
            f"{1e3 * row['intercept_ms']:.0f}",
            f"{row['r2']:.3f}" if row["kept"] == "each" else "",
        ]
        for row in rows
        if row["case"] == "line"
    ]
    head = ["features", "", "us for one feature more", "us for none", "R^2 of the line"]
    return f"{where(rows[0])}\n\n{markdown(head, body)}"


SECTIONS: dict[str, Callable[[Path], str]] = {
    "bars": bars,
    "steps": steps,
    "loops": loops,
    "skips": skips,
    "ratios": ratios,
    "calls": calls,
    "calibrators": calibrators,
    "features": lines,
}


def updated(text: str, folder: Path = RESULTS) -> str:
    """The page with its tables brought up to date."""
    return filled(text, {name: partial(make, folder) for name, make in SECTIONS.items()})
