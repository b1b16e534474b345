"""GOC and EOC on what they compensate: FORA, an L2C-style mask, over-caching.

    python benchmarks/error_compensation.py [--images 128] [--out FILE.json]

On the shipped Fashion-MNIST DiT, granularity `module`, 50 Euler steps, at shift 1 and 3. Every row
is the PSNR in dB to the uncached run from the same noise, over images whose seeds calibration has
not seen. `base` is reuse on the same mask or interval: a compensation should be above it.

    FORA N         all features, interval N (rule-based; over-caching for large N)
    L2C share      every second step full; at the others a share of the features is cached, those
                   that change least (the mask comes from calibration, not from training)

GOC: eta 1.2 on FORA and 0.8 on the mask (its published code), on its inflection set, at every step,
and at eta 0.5; "computed": the jump is that between computed features, per step. EOC: both priors,
judged on other samples.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from _measure import RESULTS, Results
from diffusers import FlowMatchEulerDiscreteScheduler
from tqdm import tqdm

from foca_dit import FoCaCacheConfig, Interval, StepMask, foca_cache
from foca_dit.analysis.metrics import psnr
from foca_dit.analysis.sampling import sample
from foca_dit.calibration.eoc import calibrate_eoc
from foca_dit.calibration.grams import record_grams
from foca_dit.calibration.inflection import inflection_steps
from foca_dit.calibration.masks import layer_mask
from foca_dit.calibration.means import record_means
from foca_dit.evaluation.trained import load
from foca_dit.schemes import GOC, FoCa, Reuse

WEIGHTS = Path(__file__).parents[1] / "examples/fashion_dit/weights"
SHIFTS = (1.0, 3.0)
METHODS = ("FORA", "L2C")
INTERVALS = (2, 3, 5, 8)
SHARES = (0.25, 0.5, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=WEIGHTS)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--samples", type=int, default=4, help="per calibration generation")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shifts", type=float, nargs="+", default=SHIFTS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--append", action="store_true", help="to the rows that FILE has")
    parser.add_argument("--out", type=Path, default=RESULTS / "error-compensation.json")
    args = parser.parse_args()
    model, _ = load(args.model)
    results = Results(args.out, "cpu")
    if args.append and args.out.exists():
        results.rows += json.loads(args.out.read_text())

    def draw(shift: float, images: int, seed: int) -> torch.Tensor:
        noise = torch.randn(images, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        return sample(model, scheduler, noise, torch.arange(images) % 10, args.steps)

    for shift in args.shifts:
        runs = [partial(draw, shift, args.samples, 1000 + i) for i in range(2)]
        inflection = inflection_steps(record_means(model, "module", runs))
        grams = record_grams(model, "module", runs[:1]).grams
        schedules = {("FORA", float(n)): Interval(n, warmup=2) for n in INTERVALS} | {
            ("L2C", share): StepMask(layer_mask(grams, share)) for share in SHARES
        }
        full = draw(shift, args.images, 1)
        chosen = {key: value for key, value in schedules.items() if key[0] in args.methods}
        for (method, setting), schedule in tqdm(chosen.items(), desc=f"shift {shift:g}"):
            eta = 1.2 if method == "FORA" else 0.8
            rows = {
                "base": Reuse(),
                f"GOC eta {eta:g}": GOC(eta, inflection),
                f"GOC eta {eta:g}, all steps": GOC(eta),
                "GOC eta 0.5": GOC(0.5, inflection),
                "GOC eta 0.8, computed": GOC(0.8, inflection, "computed"),
                "GOC eta 1.2, computed": GOC(1.2, inflection, "computed"),
            }
            for prior in ("difference", "ratio") if args.only in "EOC" else ():
                rows[f"EOC {prior}"] = calibrate_eoc(
                    model, Reuse(), schedule, runs[:1], runs[1:], prior=prior
                )[0]
            rows["FoCa (for comparison)"] = FoCa(feedback=0.5)
            for name, scheme in rows.items():
                if args.only not in name:
                    continue
                config = FoCaCacheConfig(
                    scheme=scheme,
                    schedule=schedule,
                    granularity="module",
                    history_dtype=torch.float32,
                )
                with foca_cache(model, config):
                    images = draw(shift, args.images, 1)
                results.add(
                    shift=shift,
                    method=method,
                    setting=setting,
                    compensation=name,
                    psnr=psnr(images, full),
                    images=args.images,
                    steps=args.steps,
                    inflection=len(inflection),
                )
    print(table(results.rows))
    print(f"written: {args.out}")


def table(rows: list[dict]) -> str:
    """One line per compensation: PSNR by shift, method and setting."""
    columns = list(dict.fromkeys((r["shift"], r["method"], r["setting"]) for r in rows))
    lines: dict[str, dict] = {}
    for row in rows:
        key = (row["shift"], row["method"], row["setting"])
        name = row["compensation"]
        if not name.endswith("computed"):  # as published: 1.2 on FORA, 0.8 on the mask
            name = name.replace(" eta 1.2", "").replace(" eta 0.8", "")
        lines.setdefault(name, {})[key] = f"{row['psnr']:.1f}"
    head = f"{'':<22}" + "".join(f"  s{s:g} {m} {v:g}".rjust(13) for s, m, v in columns)
    body = [
        f"{name:<22}" + "".join(f"{values.get(c, '-'):>13}" for c in columns)
        for name, values in lines.items()
    ]
    return "\n".join([head, *body])


if __name__ == "__main__":
    main()
