"""What a skipped step costs beside a full one, and what is left of the ideal speedup end to end.

    python benchmarks/skip.py [--batch 64] [--interval 5] [--out FILE.json]

On the shipped Fashion-MNIST DiT: whole generations with and without the cache, in every way of
caching, in one run and in turn. The ideal speedup is steps / full steps, as if a skipped step were
free. Ratios are taken within each round, and the median of all rounds is the result; the middle
half of them stands beside it. A skipped step is the mean over its places between two full steps,
of the median at each. "No blocks" is the model's own embedding and head around blocks that pass on
what they get: a skipped step that continues the stream (`module`, `stack`) cannot cost less.

OpenMP is left as a user has it. With OMP_WAIT_POLICY=PASSIVE threads sleep between the small
operations of a skipped step, and it takes longer.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from _measure import RESULTS, Results

from foca_dit import FoCaCacheConfig, FullSteps, apply_foca_cache, foca_cache_stats
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
def generations(
    pipelines: dict[str, Any], noise: torch.Tensor, labels: torch.Tensor, full: Sequence[int]
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, torch.Tensor]]:
    """One generation by each pipeline, a full step and what follows it up to the next of each.

    In turn, so that a slow moment of the machine hits all alike.

    Returns:
        By name: milliseconds of every call of the model, seconds of the whole loop, and images.
    """
    calls: dict[str, list[float]] = {name: [] for name in pipelines}
    seconds = dict.fromkeys(pipelines, 0.0)
    x = dict.fromkeys(pipelines, noise)
    for first, after in itertools.pairwise((*full, None)):
        for name, pipeline in pipelines.items():
            model, scheduler = pipeline.transformer, pipeline.scheduler
            for t in scheduler.timesteps[first:after]:
                started = time.perf_counter()
                output = model(x[name], timestep=t.expand(len(noise)), class_labels=labels).sample
                called = time.perf_counter()
                x[name] = scheduler.step(output, t, x[name]).prev_sample
                calls[name].append(1e3 * (called - started))
                seconds[name] += time.perf_counter() - started
    return calls, seconds, x


def skipped_step(calls: Sequence[float], full: Sequence[int]) -> float:
    """Milliseconds of a skipped step of one generation."""
    places: dict[int, list[float]] = {}
    for step, ms in enumerate(calls):
        if place := step - max(f for f in full if f <= step):
            places.setdefault(place, []).append(ms)
    return statistics.fmean(map(statistics.median, places.values()))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=WEIGHTS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--interval", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULTS / "skip-cpu.json")
    args = parser.parse_args()

    full = (0, 1, *range(2, args.steps, args.interval))
    ideal = args.steps / len(full)
    pipelines = {}
    for name in ("full", NO_BLOCKS, *WAYS):
        model, scheduler = load(args.model)
        pipelines[name] = SimpleNamespace(transformer=model, scheduler=scheduler)
    without_blocks(pipelines[NO_BLOCKS].transformer)
    for way, how in WAYS.items():
        apply_foca_cache(pipelines[way], FoCaCacheConfig(schedule=FullSteps(full), **how))
    noise = torch.randn(args.batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(args.batch) % 10
    results = Results(args.out, "cpu")
    print(f"batch {args.batch}, {torch.get_num_threads()} threads")

    rounds = []
    for _ in range(args.rounds):
        for pipeline in pipelines.values():
            pipeline.scheduler.set_timesteps(args.steps)
        rounds.append(generations(pipelines, noise, labels, full))
    images = rounds[-1][2]

    full_ms = [statistics.median(calls["full"]) for calls, _, _ in rounds]
    for way in (NO_BLOCKS, *WAYS):
        ms = [skipped_step(calls[way], full) for calls, _, _ in rounds]
        row = {
            "full_ms": statistics.median(full_ms),
            "skipped_ms": statistics.median(ms),
            **over_rounds("share", (a / b for a, b in zip(ms, full_ms, strict=True))),
        }
        mb = 0.0
        if way != NO_BLOCKS:
            stats = foca_cache_stats(pipelines[way].transformer)
            assert stats["full_steps"] == len(full) * args.rounds, stats
            assert stats["skipped_steps"] == (args.steps - len(full)) * args.rounds, stats
            mb = stats["nbytes"] / 1e6
        results.add(case="skipped step", cached=way, batch=args.batch, **row, cache_mb=mb)
        print(f"skipped step, {way:<25}{shown(row, 'share')} of a full step")

    full_s = [seconds["full"] for _, seconds, _ in rounds]
    for way in WAYS:
        cached_s = [seconds[way] for _, seconds, _ in rounds]
        speedups = [a / b for a, b in zip(full_s, cached_s, strict=True)]
        row = {
            "interval": args.interval,
            "steps": args.steps,
            "full_steps": len(full),
            "full_s": statistics.median(full_s),
            "cached_s": statistics.median(cached_s),
            "speedup": statistics.median(speedups),
            "ideal": ideal,
            **over_rounds("of_ideal", (speedup / ideal for speedup in speedups)),
            "psnr": psnr(images[way], images["full"]),
        }
        results.add(case="generation", cached=way, batch=args.batch, **row)
        print(f"N = {args.interval}, {way:<25}{row['speedup']:.2f}x, {shown(row, 'of_ideal')} "
              f"of the ideal {ideal:.2f}x, {row['psnr']:.1f} dB")  # fmt: skip
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
