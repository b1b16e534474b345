"""In which log-SNR the features of a model move at an even pace: the margin that a controller uses.

    python benchmarks/pace.py

Log-SNR has no ends, so a margin is added to both shares (`foca_dit.times.PacedLogSNR`), and the
margin says how long the first and last gaps count. Here is the speed of the features, distance per
unit of log-SNR, over a generation cut into 14 stretches: its spread (standard deviation of the
natural logarithm) by margin, and the speed in the first and the last stretch relative to the
median. No schedule is run here; that 0.02 was taken and not 0.03 or 0.05, near which the pace can
be as even, was settled by PSNR on one seed (docs/quality.md).
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from _measure import RESULTS, Results, markdown

from foca_dit.calibration.grams import record_grams
from foca_dit.clock import NoiseLevels, make_clock
from foca_dit.evaluation.trained import SETTINGS, load_trained
from foca_dit.times import PacedLogSNR

ROOT = Path(__file__).parents[1]
MARGINS = (0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
STRETCHES = 14


def speeds(gram: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """Distance over time in every stretch, from the features' inner products [S, S]."""
    steps = len(gram)
    ends = [*range(0, steps - 1, max(1, steps // STRETCHES)), steps - 1]
    found = []
    for a, b in itertools.pairwise(ends):
        distance = np.sqrt(max(gram[a, a] + gram[b, b] - 2 * gram[a, b], 0.0))
        found.append(distance / (tau[b] - tau[a]))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 28, 50, 100])
    parser.add_argument("--out", type=Path, default=RESULTS / "pace.json")
    args = parser.parse_args()
    results = Results(args.out, "cpu")
    for name in args.settings:
        known = SETTINGS[name]
        trained = load_trained(ROOT / known.folder)
        given = {"images": args.images, "seed": args.seed, "guidance_scale": known.guidance_scale}
        for steps, shift in itertools.product(args.steps, known.shifts):
            setting = trained.setting(shift or trained.shift, steps=steps, **given)
            grams = record_grams(setting.model, "stack", [setting.draw])
            levels = NoiseLevels.of(setting.sampler(), 1000.0)
            key = {"setting": name, "shift": shift or trained.shift, "steps": steps}
            for margin in MARGINS:
                clock = make_clock(PacedLogSNR(margin), levels)
                tau = np.array([clock(t, i) for i, t in enumerate(grams.timesteps)])
                speed = speeds(grams.total(), tau)
                results.add(
                    **key,
                    images=args.images,
                    seed=args.seed,
                    margin=margin,
                    spread=float(np.log(speed).std()),
                    first=float(speed[0] / np.median(speed)),
                    last=float(speed[-1] / np.median(speed)),
                )
    print(table(results.rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Means over shifts and steps, by model and margin."""
    body = []
    for name, margin in itertools.product(SETTINGS, MARGINS):
        chosen = [row for row in rows if (row["setting"], row["margin"]) == (name, margin)]
        if chosen:
            means = (np.mean([row[key] for row in chosen]) for key in ("spread", "first", "last"))
            body.append([name, f"{margin:g}", *(f"{mean:.2f}" for mean in means)])
    return markdown(["model", "margin", "spread of log speed", "first", "last"], body)


if __name__ == "__main__":
    main()
