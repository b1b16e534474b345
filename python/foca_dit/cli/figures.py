"""The analysis as one sheet of charts, in the order of the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from foca_dit.cli.chart import COLOURS, Chart, stack

NAMES = (
    "FoCa c=1",
    "FoCa c=1/2",
    "FoCa anchored",
    "TaylorSeer-1",
    "TaylorSeer-2",
    "full",
    "reuse",
    "BDF2 alone",
)
OF_SCHEME = dict(zip(NAMES, COLOURS, strict=True))


def sheet(data: Mapping[str, Any]) -> Image.Image:
    """Figures 1a, 1b, 7, 8a (two charts, and the channel index) and 8b, from `analyze`'s data."""
    interval = data["settings"]["interval"]
    paths = {
        name: [tuple(point) for point in path]
        for name, path in data["plane"]["paths"].items()
        if name in ("full", "FoCa c=1", "FoCa c=1/2", "TaylorSeer-2", "reuse")
    }
    shares = data["plane"]["shares"]
    charts = [
        Chart(
            f"Figure 1a: the path of one sample, interval {interval}",
            f"first principal direction ({shares[0]:.0%} of the variance)",
            f"second ({shares[1]:.0%})",
            paths,
            ordered=False,
        ),
        Chart(
            f"Figure 1b: error of the values used, interval {interval}",
            "step",
            "relative error",
            _over_steps(_but(data["interval_errors"], "BDF2 alone")),
        ),
        Chart(
            "Figure 7: with and without Heun's corrector",
            "cache interval N",
            "PSNR to the full run in dB",
            {n: [(int(k), v) for k, v in row.items()] for n, row in data["ablation"].items()},
        ),
        Chart(
            "Figure 8a: local truncation error",
            "step",
            "relative error of one step forecast (log)",
            _over_steps(_but(data["local_errors"], "FoCa c=1/2", "BDF2 alone")),
            log_y=True,
        ),
        Chart(
            "Figure 8a: stiffness h L, and the channel index",
            "step",
            "log scale",
            _over_steps({"h L": data["stiffness"], "Q95/Q05": data["channel_index"]}),
            log_y=True,
        ),
    ]
    for title, key in (
        ("Figure 8b: ten steps forecast, all computed before", "horizons"),
        (f"the same, every {interval}th computed before", "horizons_from_interval"),
    ):
        lines: dict[str, list[tuple[float, float]]] = {}
        for name in ("FoCa c=1", "FoCa anchored", "TaylorSeer-1", "TaylorSeer-2"):
            points: list[tuple[float, float]] = []
            for start, errors in data[key].items():
                of_start = errors[name]
                points += [(int(start), 0.0)]
                points += [(int(start) + 1 + j, e) for j, e in enumerate(of_start)]
            lines[name] = points
        charts.append(Chart(title, "step", "relative error", lines, ordered=False))
    return stack([replace(chart, colours=OF_SCHEME).draw() for chart in charts])


def _but(series: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: values for name, values in series.items() if name not in names}


def _over_steps(series: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    return {name: list(enumerate(values)) for name, values in series.items()}
