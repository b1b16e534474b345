"""What a skipped step costs beside a full one, and what is left of the ideal speedup end to end.

    python benchmarks/skip.py [--batch 64] [--interval 5] [--out FILE.json]

On the shipped Fashion-MNIST DiT, everything in one run: the time of a full step, of a skipped step
at each granularity, and of whole generations with and without the cache. The ideal speedup is
steps / full steps, as if a skipped step were free.

OpenMP is left as a user has it. On a busy machine set OMP_WAIT_POLICY=PASSIVE: threads then sleep
between the small operations of a skipped step, which costs it about a quarter more.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
from _measure import RESULTS, Results

from foca_dit import (
    FoCaCacheConfig,
    FullSteps,
    apply_foca_cache,
    foca_cache_stats,
    remove_foca_cache,
)
from foca_dit.cli.demo import load
from foca_dit.config import GRANULARITIES

WEIGHTS = Path(__file__).parents[1] / "examples/fashion_dit/weights"


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
def in_turn(models, scheduler, noise, labels, steps: int, burst: int) -> dict[str, float]:
    """Seconds of one generation by each model, `burst` steps of each in turn as in `step_times`."""
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
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=WEIGHTS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--interval", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "skip-cpu.json")
    args = parser.parse_args()

    model, scheduler = load(args.model)
    noise = torch.randn(args.batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(args.batch) % 10
    results = Results(args.out, "cpu")
    models = {"full": model} | {granularity: load(args.model)[0] for granularity in GRANULARITIES}
    for granularity in GRANULARITIES:
        config = FoCaCacheConfig(granularity=granularity, schedule=FullSteps([0, 1, 2]))
        apply_foca_cache(models[granularity], config)
    times = step_times(models, noise, labels, 45)
    full_ms = statistics.median(times["full"][5:])
    print(f"full step: {full_ms:.1f} ms (batch {args.batch}, {torch.get_num_threads()} threads)")
    for granularity in GRANULARITIES:
        skipped_ms = statistics.median(times[granularity][5:])
        stats = foca_cache_stats(models[granularity])
        assert stats["full_steps"] == 3, stats
        assert stats["skipped_steps"] == 42, stats
        remove_foca_cache(models[granularity])
        share = skipped_ms / full_ms
        results.add(
            case="skipped step",
            granularity=granularity,
            batch=args.batch,
            full_ms=full_ms,
            skipped_ms=skipped_ms,
            share=share,
            cache_mb=stats["nbytes"] / 1e6,
        )
        print(f"skipped step, {granularity:<7}{skipped_ms:>7.2f} ms {share:>7.2%} of a full step")

    for granularity in GRANULARITIES:
        config = FoCaCacheConfig(granularity=granularity, cache_interval=args.interval)
        apply_foca_cache(models[granularity], config)
    rounds = [
        in_turn(models, scheduler, noise, labels, args.steps, args.interval)
        for _ in range(args.repeats)
    ]
    seconds = {name: sum(each[name] for each in rounds) / len(rounds) for name in models}
    counts = {
        granularity: foca_cache_stats(models[granularity])["full_steps"] // args.repeats
        for granularity in GRANULARITIES
    }
    for granularity in GRANULARITIES:
        speedup, ideal = seconds["full"] / seconds[granularity], args.steps / counts[granularity]
        results.add(
            case="generation",
            granularity=granularity,
            batch=args.batch,
            interval=args.interval,
            steps=args.steps,
            full_steps=counts[granularity],
            full_s=seconds["full"],
            cached_s=seconds[granularity],
            speedup=speedup,
            ideal=ideal,
            of_ideal=speedup / ideal,
        )
        print(
            f"N = {args.interval}, {granularity:<7} {speedup:.2f}x of ideal {ideal:.2f}x "
            f"({speedup / ideal:.1%})"
        )
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
