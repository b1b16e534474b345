"""What a skipped step costs beside a full one, and what is left of the ideal speedup end to end.

    python benchmarks/skip.py [--batch 64] [--interval 5] [--out FILE.json]

On the shipped Fashion-MNIST DiT, everything in one run and in turn: the time of a full step, of a
skipped step in every way of caching, and of whole generations with and without the cache. The ideal
speedup is steps / full steps, as if a skipped step were free. Ratios are taken within each round,
and the median of all rounds is the result; the middle half of them stands beside it. "No
blocks" is the model's own embedding and head around blocks that pass on what they get: a skipped
step that continues the stream (`module`, `stack`) cannot cost less.

OpenMP is left as a user has it. With OMP_WAIT_POLICY=PASSIVE threads sleep between the small
operations of a skipped step, which makes it a third (`module`) to three fifths (`stack`) more of a
full one.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from _measure import RESULTS, Results

from foca_dit import (
    FoCaCacheConfig,
    FullSteps,
    apply_foca_cache,
    foca_cache_stats,
    remove_foca_cache,
)
from foca_dit.analysis.metrics import psnr
from foca_dit.evaluation.trained import load

WEIGHTS = Path(__file__).parents[1] / "examples/fashion_dit/weights"
WAYS: dict[str, dict[str, Any]] = {
    "module": {"granularity": "module"},
    "module, float32 history": {"granularity": "module", "history_dtype": torch.float32},
    "stack": {"granularity": "stack"},
    "stack, bfloat16 history": {"granularity": "stack", "history_dtype": torch.bfloat16},
    "output": {"granularity": "output"},
}
NO_BLOCKS = "no blocks"


@torch.inference_mode()
def step_times(models, x, labels, steps: int, burst: int = 5) -> dict[str, list[float]]:
    """Milliseconds of each of `steps` calls of every model, `burst` steps of each in turn.

    In turn, so that a slow moment of the machine hits all alike; several at a time, because in a
    generation a skipped step mostly follows a skipped step, and finds the caches as it left them.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    for first in range(0, steps, burst):
        for name, model in models.items():
            for step in range(first, min(first + burst, steps)):
                t = torch.tensor(1000.0 - 10 * step).expand(len(x))  # as every pipeline passes it
                started = time.perf_counter()
                model(x, timestep=t, class_labels=labels)
                times[name].append(1e3 * (time.perf_counter() - started))
    return times


@torch.inference_mode()
def in_turn(models, scheduler, noise, labels, steps: int, burst: int) -> tuple[dict, dict]:
    """One generation by each model, `burst` steps of each in turn as in `step_times`.

    Returns:
        Seconds and images, by name.
    """
    samplers = {name: copy.deepcopy(scheduler) for name in models}
    for sampler in samplers.values():
        sampler.set_timesteps(steps)
    x = dict.fromkeys(models, noise)
    seconds = dict.fromkeys(models, 0.0)
    for part in samplers["full"].timesteps.split(burst):
        for name, model in models.items():
            started = time.perf_counter()
            for t in part:
                output = model(x[name], timestep=t.expand(len(noise)), class_labels=labels).sample
                x[name] = samplers[name].step(output, t, x[name]).prev_sample
            seconds[name] += time.perf_counter() - started
    return seconds, x


def without_blocks(model: torch.nn.Module) -> torch.nn.Module:
    """The model with blocks that pass on what they get."""
    for block in model.transformer_blocks:
        block.forward = lambda hidden_states, **_: hidden_states
    return model


def over_rounds(name: str, ratios: Iterable[float]) -> dict[str, Any]:
    """Columns of a result: the median of all rounds, and from where to where half of them lie."""
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {name: median, f"{name}_half": [low, high]}


def shown(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_half"]
    return f"{row[name]:.2%} ({low:.2%} to {high:.2%})"


def add_step(results: Results, way: str, rounds: list[dict[str, float]], **more: Any) -> None:
    row = {
        "full_ms": statistics.median(each["full"] for each in rounds),
        "skipped_ms": statistics.median(each[way] for each in rounds),
        **over_rounds("share", (each[way] / each["full"] for each in rounds)),
    }
    results.add(case="skipped step", cached=way, **row, **more)
    print(f"skipped step, {way:<25}{shown(row, 'share')} of a full step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=WEIGHTS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--interval", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULTS / "skip-cpu.json")
    args = parser.parse_args()

    model, scheduler = load(args.model)
    noise = torch.randn(args.batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(args.batch) % 10
    results = Results(args.out, "cpu")
    print(f"batch {args.batch}, {torch.get_num_threads()} threads")
    models = {"full": model} | {way: load(args.model)[0] for way in WAYS}
    for way, how in WAYS.items():
        apply_foca_cache(models[way], FoCaCacheConfig(schedule=FullSteps([0, 1, 2]), **how))
    alone = {NO_BLOCKS: without_blocks(load(args.model)[0])}
    rounds = [
        {name: statistics.median(ms[5:]) for name, ms in times.items()}
        for times in (step_times(models | alone, noise, labels, 25) for _ in range(args.rounds))
    ]
    add_step(results, NO_BLOCKS, rounds, batch=args.batch, cache_mb=0.0)
    for way in WAYS:
        stats = foca_cache_stats(models[way])
        assert stats["full_steps"] == 3 * args.rounds, stats
        assert stats["skipped_steps"] == 22 * args.rounds, stats
        remove_foca_cache(models[way])
        add_step(results, way, rounds, batch=args.batch, cache_mb=stats["nbytes"] / 1e6)

    for way, how in WAYS.items():
        apply_foca_cache(models[way], FoCaCacheConfig(cache_interval=args.interval, **how))
    seconds, images = [], {}
    for _ in range(args.rounds):
        taken, images = in_turn(models, scheduler, noise, labels, args.steps, args.interval)
        seconds.append(taken)
    for way in WAYS:
        full_steps = foca_cache_stats(models[way])["full_steps"] // args.rounds
        ideal = args.steps / full_steps
        row = {
            "interval": args.interval,
            "steps": args.steps,
            "full_steps": full_steps,
            "full_s": statistics.median(each["full"] for each in seconds),
            "cached_s": statistics.median(each[way] for each in seconds),
            "speedup": statistics.median(each["full"] / each[way] for each in seconds),
            "ideal": ideal,
            **over_rounds("of_ideal", (each["full"] / each[way] / ideal for each in seconds)),
            "psnr": psnr(images[way], images["full"]),
        }
        results.add(case="generation", cached=way, batch=args.batch, **row)
        print(f"N = {args.interval}, {way:<25}{row['speedup']:.2f}x, {shown(row, 'of_ideal')} "
              f"of the ideal {ideal:.2f}x, {row['psnr']:.1f} dB")  # fmt: skip
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
