"""In which log-SNR the features of a model move at an even pace: the margin that a controller uses.

    python benchmarks/pace.py

Log-SNR has no ends, so a margin is added to both shares (`foca_dit.times.LogSNR`), and the margin
says how long the first and last gaps count. Here is the speed of the features, distance per unit of
log-SNR, over a generation cut into 14 stretches: its spread (standard deviation of the natural
logarithm) by margin, and the speed in the first and the last stretch relative to the median.
No image is judged and no schedule run: the choice knows nothing of PSNR.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
from _measure import RESULTS, Results, markdown

from foca_dit.calibration.grams import record_grams
from foca_dit.evaluation.trained import SETTINGS, load_trained
from foca_dit.times import LogSNR

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
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 28, 50, 100])
    parser.add_argument("--shifts", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--out", type=Path, default=RESULTS / "pace.json")
    args = parser.parse_args()
    trained = load_trained(ROOT / SETTINGS["flow"].folder)
    results = Results(args.out, "cpu")
    for steps, shift in itertools.product(args.steps, args.shifts):
        setting = trained.setting(shift, steps=steps, images=args.images, seed=args.seed)
        grams = record_grams(setting.model, "stack", [setting.draw])
        sigmas = np.array(grams.timesteps) / 1000.0
        for margin in MARGINS:
            speed = speeds(grams.total(), LogSNR(margin).flow(0, sigmas))
            results.add(
                shift=shift,
                steps=steps,
                images=args.images,
                seed=args.seed,
                margin=margin,
                spread=float(np.log(speed).std()),
                first=float(speed[0] / np.median(speed)),
                last=float(speed[-1] / np.median(speed)),
            )
    body = []
    for margin in MARGINS:
        rows = [row for row in results.rows if row["margin"] == margin]
        means = (float(np.mean([row[key] for row in rows])) for key in ("spread", "first", "last"))
        body.append([f"{margin:g}", *(f"{mean:.2f}" for mean in means)])
    print(markdown(["margin", "spread of log speed", "first stretch", "last stretch"], body))


if __name__ == "__main__":
    main()
