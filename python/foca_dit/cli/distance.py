"""Classifier-FID over full steps, one line per row: the picture of `foca-dit eval --draw`."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from foca_dit.cli.chart import Chart, Points
from foca_dit.evaluation.suite import FULL, Row
from foca_dit.evaluation.tables import distances


def picture(rows: Sequence[Row], pooled: Sequence[Row]) -> Image.Image:
    """The chart.

    Args:
        rows, pooled: of one setting.
    """
    found = distances(rows, pooled)
    budgets = sorted({budget for name, of in found.items() if name != FULL for budget in of})
    lines: dict[str, Points] = {}
    for name, values in found.items():
        if name == FULL:  # a level to compare with, as wide as the other lines
            level = next(iter(values.values()))[0]
            lines[name] = [(budget, level) for budget in (*budgets[:1], *budgets[1:][-1:])]
        else:
            lines[name] = [(budget, values[budget][0]) for budget in budgets if budget in values]
    ours = sorted(lines, key=lambda name: "adaptive" not in name)  # the first colour stands out
    row = rows[0]
    images = row["images"] * len({r["seed"] for r in rows})
    sampler = "no shift" if row["shift"] is None else f"shift {row['shift']:g}"
    return Chart(
        f"Distance to real garments, {images} images each, {sampler}",
        f"full steps of {row['steps']}",
        "classifier-FID (lower is closer)",
        {name: lines[name] for name in ours},
    ).draw()
