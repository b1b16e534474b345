"""`foca-dit demo`: the same garments with and without the cache, as a table and a picture."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from foca_dit import (
    Adaptive,
    FoCaCacheConfig,
    Interval,
    foca_cache,
    foca_cache_stats,
    schemes,
)
from foca_dit.analysis.metrics import psnr
from foca_dit.analysis.sampling import sample
from foca_dit.cli.arguments import at_least
from foca_dit.config import GRANULARITIES
from foca_dit.evaluation.trained import DEFAULT_MODEL, load
from foca_dit.files import check_output

SCHEMES: dict[str, schemes.Scheme] = {
    "reuse": schemes.Reuse(),
    "TaylorSeer-1": schemes.TaylorSeer(order=1),
    "FoCa": schemes.FoCa(reading="rolling", feedback=0.5),
}
ADAPTIVE = "FoCa adaptive"
# Uncached steps timed between two settings: a machine that others use is not always as fast.
PROBE_STEPS = 4


@dataclass(frozen=True)
class Row:
    """One line of the table, and its images.

    Attributes:
        seconds: of this run.
        full_seconds: of a run in full, by uncached steps timed right before and after this run.
    """

    scheme: str
    granularity: str
    interval: int
    full_steps: int
    seconds: float
    full_seconds: float
    psnr: float
    cache_mb: float
    images: torch.Tensor

    @property
    def speedup(self) -> float:
        """How many times faster than the run in full."""
        return self.full_seconds / self.seconds


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser."""
    parser = commands.add_parser(
        "demo",
        help="sample garments with and without the cache: a table and a picture",
        description="Samples the same garments from the small trained Diffusion Transformer in "
        "examples/fashion_dit: once computing every step, then with each scheme and interval, and "
        f"with as many full steps where the adaptive interval puts them ({ADAPTIVE}). The table "
        "says how close the images stay to the full run (PSNR, higher is closer) and how much "
        "faster they come than full steps timed right before and after, beside the ideal (steps / "
        "full steps). The picture shows them.",
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=DEFAULT_MODEL,
        metavar="FOLDER",
        help="folder with transformer/ and scheduler/ (default examples/fashion_dit/weights)",
    )
    parser.add_argument("--images", type=int, default=64, help="garments to sample (default 64)")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps (default 50)")
    parser.add_argument(
        "--intervals",
        type=int,
        nargs="+",
        default=[3, 5, 7],
        metavar="N",
        help="cache intervals to try (default 3 5 7)",
    )
    parser.add_argument(
        "--granularity",
        nargs="+",
        choices=GRANULARITIES,
        default=["module", "stack"],
        help="what is cached (default module stack)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise (default 0)")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="the picture")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Samples, prints the table, writes the picture."""
    at_least(
        ("images", args.images, 1),
        ("steps", args.steps, 1),
        ("intervals", min(args.intervals), 1),
    )
    if args.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"argument --out: expected a .png or .jpg file, got {args.out}")
    check_output("argument --out", args.out)
    model, scheduler = load(args.model)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{args.images} garments, {args.steps} steps, {millions:.1f} M parameters, "
        f"{torch.get_num_threads()} threads"
    )
    rows = measure(model, scheduler, args)
    print(table(rows, args.images, args.steps))
    from foca_dit.cli.chart import write_picture
    from foca_dit.cli.picture import draw

    write_picture(draw(rows, args.steps), args.out)
    print(f"the same garments side by side: {args.out}")
    return 0


def measure(model: torch.nn.Module, scheduler: Any, args: argparse.Namespace) -> list[Row]:
    """Runs the model in full, then every setting; the full run comes first."""
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(args.seed)
    config: Any = model.config
    size, channels = int(config.sample_size), int(config.in_channels)
    noise = torch.randn(args.images, channels, size, size, generator=generator)
    labels = torch.arange(args.images) % int(config.num_embeds_ada_norm)
    settings = [
        (name, granularity, interval)
        for granularity in args.granularity
        for interval in args.intervals
        for name in (*SCHEMES, ADAPTIVE)
    ]
    scheduler.set_timesteps(args.steps)
    timesteps = scheduler.timesteps.tolist()
    pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
    rows: list[Row] = []
    sample(model, scheduler, noise, labels, steps=2)  # warm up threads and caches
    total = (1 + len(settings)) * (args.steps + PROBE_STEPS)
    with tqdm(total=total, unit="step", leave=False) as bar:

        def counted(timesteps: Any) -> Any:
            for t in timesteps:
                yield t
                bar.update()

        def timed(steps: int) -> tuple[torch.Tensor, float]:
            started = time.perf_counter()
            images = sample(model, scheduler, noise, labels, steps, progress=counted)
            return images, time.perf_counter() - started

        def full_step() -> float:
            return timed(PROBE_STEPS)[1] / PROBE_STEPS

        bar.set_description("full")
        full, seconds = timed(args.steps)
        rows.append(Row("full", "-", 1, args.steps, seconds, seconds, float("inf"), 0.0, full))
        before = full_step()
        for name, granularity, interval in settings:
            bar.set_description(f"{name}, {granularity}, N = {interval}")
            with foca_cache(pipeline, _config(name, granularity, interval, timesteps)):
                images, seconds = timed(args.steps)
                stats = foca_cache_stats(model)
            after = full_step()
            rows.append(
                Row(
                    scheme=name,
                    granularity=granularity,
                    interval=interval,
                    full_steps=stats["full_steps"],
                    seconds=seconds,
                    full_seconds=args.steps * (before + after) / 2,
                    psnr=psnr(images, full),
                    cache_mb=stats["nbytes"] / 1e6,
                    images=images,
                )
            )
            before = after
    return rows


def _config(name: str, granularity: str, interval: int, timesteps: list[float]) -> FoCaCacheConfig:
    """A scheme on the uniform interval, or the default preset with as many full steps."""
    if name in SCHEMES:
        return FoCaCacheConfig(
            preset="paper",
            scheme=SCHEMES[name],
            cache_interval=interval,
            granularity=granularity,
        )
    budget = len(Interval(interval).full_steps(len(timesteps)))
    schedule = Adaptive(budget=budget, first=min(2, budget), timesteps=timesteps)
    return FoCaCacheConfig(schedule=schedule, granularity=granularity)


def table(rows: list[Row], images: int, steps: int) -> str:
    """The measured rows as text."""
    head = f"{'scheme':<15}{'caches':<8}{'N':>3}{'full steps':>12}{'PSNR dB':>9}"
    head += f"{'s/image':>9}{'speedup':>9}{'ideal':>7}{'cache MB':>10}"
    lines = [head, "-" * len(head)]
    for row in rows:
        lines.append(
            f"{row.scheme:<15}{row.granularity:<8}{row.interval:>3}{row.full_steps:>12}"
            f"{row.psnr:>9.1f}{row.seconds / images:>9.4f}"
            f"{row.speedup:>8.2f}x{steps / row.full_steps:>6.2f}x"
            f"{row.cache_mb:>10.1f}"
        )
    return "\n".join(lines)
