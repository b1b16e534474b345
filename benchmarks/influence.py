"""What an error of a model's output at a step does to the final sample: measured, and as a rule.

    python benchmarks/influence.py

At one step of a generation the output of the step before is taken, all others are computed: the
distance of the final samples over the distance of the two outputs. Beside it the rule that the
controller weighs errors by (`foca_dit.schedules.sampler.error_weights`), for several standard
deviations of the data, and how far each falls from the first third of the probed steps to the last
(ratio of geometric means).
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from _measure import RESULTS, Results, markdown

from foca_dit import FoCaCacheConfig, FullSteps, foca_cache
from foca_dit.calibration.influence import probe_steps
from foca_dit.clock import NoiseLevels
from foca_dit.evaluation.setting import Setting
from foca_dit.evaluation.trained import SETTINGS, load_trained
from foca_dit.schedules.sampler import error_weights

ROOT = Path(__file__).parents[1]
STDS = (1.0, 2.0, 3.0, 5.0, 10.0)


def draw(setting: Setting, outputs: list[torch.Tensor] | None = None) -> torch.Tensor:
    """The final samples; the model's outputs, guided, are appended to `outputs`."""
    scheduler = setting.sampler()
    step = scheduler.step

    def watched(output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if outputs is not None:
            outputs.append(output.clone())
        return step(output, *args, **kwargs)

    scheduler.step = watched
    return setting.draw(scheduler=scheduler).images


def measured(setting: Setting, steps: int, probes: list[int]) -> list[float]:
    """Distance of the final samples over distance of the outputs, by probed step."""
    outputs: list[torch.Tensor] = []
    full, found = draw(setting, outputs), []
    pipeline = SimpleNamespace(transformer=setting.model, scheduler=setting.sampler())
    for probe in probes:
        others = FullSteps([step for step in range(steps) if step != probe])
        config = FoCaCacheConfig(scheme="reuse", schedule=others, granularity="output")
        with foca_cache(pipeline, config):
            moved = draw(setting) - full
        found.append(float(moved.norm() / (outputs[probe - 1] - outputs[probe]).norm()))
    return found


def fall(values: list[float]) -> float:
    """From the first third to the last, as a ratio of geometric means."""
    third = max(1, len(values) // 3)
    logs = np.log(values)
    return float(np.exp(logs[:third].mean() - logs[-third:].mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--probes", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "influence.json")
    args = parser.parse_args()
    results = Results(args.out, "cpu")
    probes = probe_steps(args.steps, args.probes)
    for name in args.settings:
        known = SETTINGS[name]
        trained = load_trained(ROOT / known.folder)
        given = {"images": args.images, "seed": args.seed, "guidance_scale": known.guidance_scale}
        for shift in known.shifts:
            setting = trained.setting(shift or trained.shift, steps=args.steps, **given)
            scheduler = setting.sampler()
            scheduler.set_timesteps(args.steps)
            levels = NoiseLevels.of(scheduler, 1000.0)
            timesteps = levels.planned()
            assert timesteps is not None
            found = measured(setting, args.steps, probes)
            key = {"setting": name, "shift": shift or trained.shift, "steps": args.steps}
            key |= {"images": args.images, "seed": args.seed, "probes": probes}
            results.add(**key, by="measured", influence=found, fall=fall(found))
            for std in STDS:
                weights = error_weights(levels, timesteps, std)
                rule = [weights[probe] for probe in probes]
                results.add(
                    **key, by=f"standard deviation {std:g}", influence=rule, fall=fall(rule)
                )
    print(table(results.rows))


def table(rows: list[dict[str, Any]]) -> str:
    """How far the influence falls over a generation, by model."""
    names = list(dict.fromkeys(row["by"] for row in rows))
    keys = list(dict.fromkeys((row["setting"], row["shift"]) for row in rows))
    body = []
    for by, (setting, shift) in itertools.product(names, keys):
        row = next(r for r in rows if (r["by"], r["setting"], r["shift"]) == (by, setting, shift))
        if len(body) == 0 or body[-1][0] != by:
            body.append([by])
        body[-1].append(f"{row['fall']:.2f}")
    titles = [name if shift is None else f"{name}, shift {shift:g}" for name, shift in keys]
    return markdown(["falls by", *titles], body)


if __name__ == "__main__":
    main()
