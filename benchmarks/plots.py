"""Draws the pictures of docs/performance.md from the JSON files in benchmarks/results.

    python benchmarks/plots.py [--out docs/figures] [--results benchmarks/results]

roofline      percent of a copy against the bytes that an operator moves
skipped       what a skipped step costs, in percent of a full one
speedup       end to end, against the ideal; with the points that papers publish, marked so
features      cost against the number of features
timeline      one skipped step on a GPU: what runs when (only where a GPU was measured)

What was not measured is not drawn, and the picture says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any

import _paths
from _measure import RESULTS
from _performance import devices, load
from PIL import Image, ImageDraw, ImageFont

from foca_dit.cli.chart import COLOURS, FACTOR, GRID, INK, Chart, stack
from foca_dit.evaluation.paper_tables import TABLES

FIGURES = _paths.ROOT / "docs/figures"
COLOURS_KEPT = 128  # of the palette: keeps a picture near 20 kB

Rows = list[dict[str, Any]]

# What the published points are of: table of the FoCa paper, method.
PUBLISHED = {
    "TaylorSeer, FLUX": (1, "TaylorSeer"),
    "FoCa, FLUX": (1, "FoCa"),
    "FoCa, HunyuanVideo": (2, "FoCa"),
    "FoCa, DiT-XL/2": (3, "FoCa"),
}
COLOURS_OF_PAPERS = ("#e6b0aa", "#c0392b", "#7f8c8d", "#af7ac5")
OPERATORS = {
    "forecast_residual_ L=8 K=3": "residual, 8 features",
    "forecast_residual_ packed L=8 K=3": "residual, packed",
    "forecast K=3": "forecast",
    "forecast_calibrate": "forecast_calibrate",
    "commit_ K=3 R=0": "commit",
    "commit_ K=3 R=2": "commit, statistics",
}


def measured(rows: Rows) -> Rows:
    return [row for row in rows if "ms" in row]


def roofline(rows: Rows, title: str, provider: str) -> Image.Image:
    """Percent of a copy of the same bytes, by the bytes moved."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in measured(rows):
        if row["provider"] != provider or row["case"] not in OPERATORS or not row["gbs"]:
            continue
        if row["dtype"] == "bfloat16":
            point = log2(row["bytes"]), 100 * row["gbs"] / row["copy_gbs"]
            lines.setdefault(OPERATORS[row["case"]], []).append(point)
    if lines:
        ends = [x for points in lines.values() for x, _ in points]
        lines["a copy"] = [(min(ends), 100.0), (max(ends), 100.0)]
    title += "" if lines else ": not measured"
    chart = Chart(
        title, "bytes moved, as a power of 2", "percent of a copy's bandwidth", lines,
        colours={"a copy": "#7f8c8d"},
    )  # fmt: skip
    return chart.draw()


def features(rows: Rows) -> Image.Image:
    """Milliseconds by number of features of one size each."""
    names = {
        "cpu-cpp": "one launch",
        "packed": "one launch, packed",
        "copy": "a copy of as much",
    }
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in measured(rows):
        if row.get("kept") == "each" and row["provider"] in names:
            lines.setdefault(names[row["provider"]], []).append((row["features"], row["ms"]))
    title = "Cost against the number of features, CPU" + ("" if lines else ": not measured")
    return Chart(title, "features of 128k bfloat16 elements", "milliseconds", lines).draw()


def published() -> dict[str, list[tuple[float, float]]]:
    """The paper's points: its speedup in FLOPs, and that of its latencies."""
    lines = {}
    for name, (number, method) in PUBLISHED.items():
        rows = [row.published for row in TABLES[number].rows if row.published]
        full = rows[0]["seconds"]
        lines[f"published: {name}"] = [
            (row.published["flops_ratio"], full / row.published["seconds"])
            for row in TABLES[number].rows
            if row.published and row.method.startswith(method)
        ]
    return lines


def speedup(cpu: Rows, gpu: Mapping[str, Rows]) -> Image.Image:
    """End to end against the ideal; published points beside the measured ones."""
    lines: dict[str, list[tuple[float, float]]] = {"ideal": [(1.5, 1.5), (6.5, 6.5)]}
    for row in cpu:
        if row["case"] == "generation":
            name = f"measured: {row['cached']}, demo model, CPU"
            lines.setdefault(name, []).append((row["ideal"], row["speedup"]))
    for device, rows in gpu.items():
        for row in measured(rows):
            if row["provider"].startswith("foca ") and row["mode"] == "eager" and row["speedup"]:
                what = row["provider"].removeprefix("foca ")
                name = f"measured: {what}, {row['model']}, {device}"
                lines.setdefault(name, []).append((row["ideal"], row["speedup"]))
    points = published()
    lines |= points
    missing = "" if any(measured(rows) for rows in gpu.values()) else " (on a GPU: not measured)"
    chart = Chart(
        "Speedup of whole generations" + missing,
        "ideal speedup: steps / full steps (published: of FLOPs)",
        "measured speedup",
        lines,
        colours={"ideal": "#d5d8dc", **dict(zip(points, COLOURS_OF_PAPERS, strict=True))},
    )
    return chart.draw(900, 460)


def skipped(cpu: Rows, gpu: Mapping[str, Rows]) -> Image.Image:
    """Bars: a skipped step in percent of a full one."""
    bars = [
        (f"demo model, CPU: {row['cached']}", 100 * row["share"])
        for row in cpu
        if row["case"] == "skipped step"
    ]
    for device, rows in gpu.items():
        bars += [
            (
                f"{row['model']}, {device}: {row['case'].removeprefix('skipped step, ')}"
                + (", one graph" if "graph" in row["provider"] else ""),
                100 * row["share"],
            )
            for row in measured(rows)
            if row["case"].startswith("skipped step")
        ]
    missing = "" if any(measured(rows) for rows in gpu.values()) else " (on a GPU: not measured)"
    return draw_bars("A skipped step, in percent of a full one" + missing, bars)


def draw_bars(title: str, bars: Sequence[tuple[str, float]], width: int = 760) -> Image.Image:
    """Horizontal bars with their names to the left and values to the right."""
    line, top = 24 * FACTOR, 48 * FACTOR
    height = top + line * max(1, len(bars)) + 16 * FACTOR
    canvas = Image.new("RGB", (width * FACTOR, height), "white")
    pen = ImageDraw.Draw(canvas)
    small, large = ImageFont.load_default(12 * FACTOR), ImageFont.load_default(15 * FACTOR)
    pen.text((16 * FACTOR, 10 * FACTOR), title, fill="black", font=large)
    names = max((pen.textlength(name, font=small) for name, _ in bars), default=0)
    left, right = int(names) + 32 * FACTOR, (width - 80) * FACTOR
    most = max((value for _, value in bars), default=1.0)
    for index, (name, value) in enumerate(bars):
        middle = top + line * index + line // 2
        end = left + (right - left) * value / most
        pen.text((left - 10 * FACTOR, middle), name, fill=INK, font=small, anchor="rm")
        pen.rectangle([left, middle - line // 3, right, middle + line // 3], fill=GRID)
        pen.rectangle([left, middle - line // 3, end, middle + line // 3], fill=COLOURS[1])
        shown = f"{value:.2f} %" if value < 1 else f"{value:.1f} %"
        pen.text((right + 8 * FACTOR, middle), shown, fill=INK, font=small, anchor="lm")
    return canvas.resize((width, height // FACTOR), Image.Resampling.LANCZOS)


def timeline(rows: Rows) -> Image.Image | None:
    """What ran when in one skipped step of each model and granularity; None: nothing traced."""
    traced = [row for row in rows if row["case"].startswith("timeline")]
    if not traced:
        return None
    strips = []
    for row in traced:
        spans = row["spans"]
        end = max((begin + took for begin, took, _ in spans), default=1.0)
        canvas = Image.new("RGB", (900 * FACTOR, 64 * FACTOR), "white")
        pen = ImageDraw.Draw(canvas)
        font = ImageFont.load_default(12 * FACTOR)
        what = row["case"].removeprefix("timeline, ")
        note = f"{row['model']}, {what}: {len(spans)} launches in {end:.0f} us"
        pen.text((16 * FACTOR, 8 * FACTOR), note, fill=INK, font=font)
        scale = 868 * FACTOR / end
        pen.rectangle([16 * FACTOR, 30 * FACTOR, 884 * FACTOR, 56 * FACTOR], fill=GRID)
        for begin, took, name in spans:
            left = 16 * FACTOR + begin * scale
            right = max(left + 1, left + took * scale)
            fill = COLOURS[0] if "residual" in name else COLOURS[1]
            pen.rectangle([left, 30 * FACTOR, right, 56 * FACTOR], fill=fill)
        strips.append(canvas.resize((900, 64), Image.Resampling.LANCZOS))
    return stack(strips, columns=1)


def draw_all(results: Path, out: Path) -> list[Path]:
    """Draws every picture that there are measurements for; returns the files."""
    skip = load(results, "skip-cpu.json")
    measured_on = devices(results)
    steps = {d: load(results, f"gpu-{d}-skip.json") for d in measured_on}
    loops = {
        d: [r for k in ("flux", "dit", "video") for r in load(results, f"gpu-{d}-e2e-{k}.json")]
        for d in measured_on
    }
    sizes = load(results, "sizes-cpu.json")
    pictures: dict[str, Image.Image | None] = {
        "roofline-cpu": roofline(sizes, "The operators on a CPU", "cpu-cpp"),
        "features": features(load(results, "features-cpu.json")),
        "skipped": skipped(skip, steps),
        "speedup": speedup(skip, loops),
    }
    for device in measured_on:
        name = f"The operators on {device}"
        rows = load(results, f"gpu-{device}-ops.json")
        pictures[f"roofline-{device}"] = roofline(rows, name, "cuda-cpp") if rows else None
        pictures[f"timeline-{device}"] = timeline(steps[device])
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, picture in pictures.items():
        if picture is None:
            continue
        path = out / f"{name}.png"
        picture.quantize(COLOURS_KEPT).save(path, optimize=True)
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FIGURES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    for path in draw_all(args.results, args.out):
        print(f"written: {path} ({path.stat().st_size // 1000} kB)")


if __name__ == "__main__":
    main()
