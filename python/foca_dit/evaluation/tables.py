"""Rows as text: a table per setting, one line per rival, averages over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from foca_dit.evaluation.suite import FULL, Row

SLACK = 1.5
"""So many full steps above the budget still count as keeping it: some rules decide as they go."""

Lines = list[list[str]]


def settings(rows: Iterable[Row]) -> list[tuple[Any, ...]]:
    """The settings that rows were measured in, in their order."""
    return list(dict.fromkeys(_setting(row) for row in rows))


def of_setting(rows: Iterable[Row], setting: tuple[Any, ...]) -> list[Row]:
    """Those rows that were measured in one of `settings`."""
    return [row for row in rows if _setting(row) == setting]


def _setting(row: Row) -> tuple[Any, ...]:
    return row["shift"], row["steps"], row["images"], row["guidance_scale"]


MEASURES = {"psnr": "PSNR", "psnr_each": "PSNR of each image"}
"""Of all images together, and the mean of each one's own."""


def quality(rows: Sequence[Row], measure: str = "psnr") -> Lines:
    """PSNR (and its spread over seeds) by budget, the best at the smallest budget first.

    Rows that made more full steps than that budget stand last.

    Args:
        rows: of one setting.
        measure: one of `MEASURES`.
    """
    budgets = _budgets(rows)
    head = ["row", *(f"{budget} full steps: {MEASURES[measure]}" for budget in budgets)]
    lines = []
    for name in _names(rows):
        cells: list[str] = []
        order: list[float] = []
        fair = True
        for budget in budgets:
            chosen = _chosen(rows, name, budget)
            values = [row[measure] for row in chosen if row.get(measure) is not None]
            if not values:
                cells.append("-")
                order.append(-math.inf)
                continue
            mean = statistics.fmean(values)
            steps = statistics.fmean(row["full_steps"] for row in chosen)
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            fair = steps <= budget + SLACK
            counted = "" if abs(steps - budget) < 0.05 else f" ({steps:.1f})"
            cells.append(f"{mean:.1f}{spread}{counted}")
            order.append(mean)
        if any(cell != "-" for cell in cells):
            lines.append(((fair, *reversed(order)), [name, *cells]))
    lines.sort(key=lambda line: line[0], reverse=True)
    return [head, *(line for _, line in lines)]


COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("full steps", "full_steps", "{:.1f}".format),
    ("PSNR dB", "psnr", "{:.1f}".format),
    (MEASURES["psnr_each"], "psnr_each", "{:.1f}".format),
    ("SSIM", "ssim", "{:.4f}".format),
    ("PSNR of frame changes", "temporal_psnr", "{:.1f}".format),
    ("PSNR to the long run", "psnr_reference", "{:.1f}".format),
    ("classifier-FID", "classifier_fid", "{:.2f}".format),
    ("classifier-IS", "classifier_is", "{:.2f}".format),
    ("class accuracy", "accuracy", "{:.1%}".format),
    ("GFLOPs/image", "gflops_per_image", "{:.2f}".format),
    ("cache MB", "nbytes", lambda value: f"{value / 1e6:.2f}"),
)


def everything(rows: Sequence[Row], budget: int) -> Lines:
    """All metrics at one budget, the full run on top, the rest by PSNR; costlier ones last.

    Args:
        rows: of one setting.
        budget: of full steps.
    """
    columns = [c for c in COLUMNS if any(row.get(c[1]) is not None for row in rows)]
    lines = []
    for name in [FULL, *_names(rows)]:
        chosen = [r for r in _chosen(rows, name, None if name == FULL else budget) if "psnr" in r]
        if not chosen:
            continue
        cells = []
        for _, key, show in columns:
            values = [row[key] for row in chosen if row.get(key) is not None]
            cells.append(show(statistics.fmean(values)) if values else "-")
        psnrs = [row["psnr"] for row in chosen if row["psnr"] is not None]
        order = math.inf if name == FULL else statistics.fmean(psnrs or [0.0])
        steps = statistics.fmean(row["full_steps"] for row in chosen)
        fair = name == FULL or steps <= budget + SLACK
        lines.append(((fair, order), [name, *cells]))
    lines.sort(key=lambda line: line[0], reverse=True)
    return [["row", *(title for title, _, _ in columns)], *(line for _, line in lines)]


def distances(rows: Sequence[Row], pooled: Sequence[Row]) -> dict[str, dict[int, list[float]]]:
    """Classifier-FID by row and budget: of all images together, then of every seed's.

    Args:
        rows, pooled: of one setting. A row of one seed is its own whole.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row.get("classifier_fid") is not None:
            values = found.setdefault(row["row"], {})
            values.setdefault(row["budget"], [math.nan]).append(row["classifier_fid"])
    together = {(row["row"], row["budget"]): row["classifier_fid"] for row in pooled}
    for name, by_budget in found.items():
        for budget, each in by_budget.items():
            of_one = each[1] if len(each) == 2 else math.nan
            each[0] = together.get((name, budget), of_one)
    return found


def closeness(rows: Sequence[Row], pooled: Sequence[Row]) -> Lines:
    """Classifier-FID by budget, the images of all seeds together; in brackets mean and spread.

    Args:
        rows, pooled: of one setting.
    """
    budgets = _budgets(rows)
    lines = []
    for name, values in distances(rows, pooled).items():
        cells = []
        # The full run has one budget of its own, and the same figure in every column.
        for budget in list(values) * len(budgets) if name == FULL else budgets:
            whole, *seeds = values.get(budget, [math.nan])
            cell = "-" if math.isnan(whole) else f"{whole:.2f}"
            if len(seeds) > 1:
                cell += f" ({statistics.fmean(seeds):.2f} ± {statistics.stdev(seeds):.2f})"
            cells.append(cell)
        order = math.inf if name == FULL else -values.get(budgets[-1], [math.inf])[0]
        lines.append((order, [name, *cells]))
    lines.sort(key=lambda line: line[0], reverse=True)
    return [["row", *(f"{n} full steps: FID" for n in budgets)], *(line for _, line in lines)]


def absent(rows: Sequence[Row]) -> str:
    """Which rows are missing at which budgets and why, a line for each reason; or nothing."""
    missing: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        if "absent" in row:
            missing.setdefault((row["absent"], row["row"]), set()).add(row["budget"])
    alike: dict[tuple[str, str], list[str]] = {}
    for (why, name), budgets in missing.items():
        listed = ", ".join(map(str, sorted(budgets, reverse=True)))
        alike.setdefault((why, listed), []).append(name)
    lines = [f"- {'; '.join(names)} ({at}): {why}" for (why, at), names in alike.items()]
    return "\n".join(["Absent:", "", *lines]) if lines else ""


def as_text(lines: Lines) -> str:
    """Aligned columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    shown = [
        line[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(w)}" for cell, w in zip(line[1:], widths[1:], strict=True))
        for line in lines
    ]
    return "\n".join([shown[0], "-" * len(shown[0]), *shown[1:]])


def as_markdown(lines: Lines) -> str:
    """A Markdown table."""
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + " --- |" * len(lines[0]), *rows[1:]])


def report(
    rows: Sequence[Row],
    table: Callable[[Lines], str] = as_text,
    pooled: Sequence[Row] = (),
    metrics: bool = True,
) -> str:
    """The tables of all settings.

    Args:
        rows: measured ones.
        table: how a table is written.
        pooled: of all seeds together.
        metrics: one table per budget with all metrics, too.
    """
    parts = []
    for setting in settings(rows):
        chosen = of_setting(rows, setting)
        shift, steps, images, guidance = setting
        seeds = len({row["seed"] for row in chosen})
        where = chosen[-1]["environment"]
        sampler = "no shift" if shift is None else f"shift {shift:g}"
        parts.append(
            f"{steps} steps, {sampler}, guidance {guidance:g}, {images} images, "
            f"{seeds} seed{'s' * (seeds > 1)}; {where['threads']} threads, torch {where['torch']}, "
            f"diffusers {where['diffusers']}, cache-dit {where['cache-dit']}, {dates(chosen)}. In "
            "brackets: full steps as counted, where they are not the budget; rows that passed it "
            f"by more than {SLACK} stand last."
        )
        parts += [table(quality(chosen, measure)) for measure in measures(chosen)]
        if together := of_setting(pooled, setting):
            count = max(len(row["seeds"]) for row in together)
            parts += [
                f"Classifier-FID of all {count} x {images} images together, in brackets that of "
                f"{images} by seed, mean ± standard deviation (more images make a smaller FID):",
                table(closeness(chosen, together)),
            ]
        for budget in _budgets(chosen) if metrics else []:
            parts += [f"All metrics at {budget} full steps:", table(everything(chosen, budget))]
        if missing := absent(chosen):
            parts.append(missing)
    return "\n\n".join(parts)


def dates(rows: Iterable[Row]) -> str:
    """When rows were measured: a day, or the first and the last of several."""
    days = sorted({row["environment"]["date"] for row in rows})
    return " to ".join(dict.fromkeys((days[0], days[-1])))


def measures(rows: Sequence[Row]) -> list[str]:
    """Those of `MEASURES` that all rows have; some were measured before there was another."""
    measured = [row for row in rows if row.get("psnr") is not None]
    return [m for m in MEASURES if measured and all(m in row for row in measured)]


def _budgets(rows: Sequence[Row]) -> list[int]:
    return sorted({row["budget"] for row in rows if row["row"] != FULL}, reverse=True)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["row"] for row in rows if row["row"] != FULL))


def _chosen(rows: Sequence[Row], name: str, budget: int | None) -> list[Row]:
    return [row for row in rows if row["row"] == name and budget in (None, row["budget"])]
