"""`foca-dit analyze`: how a model's features move, and what the paper's figures look like on it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from foca_dit import FoCaCacheConfig, foca_cache, schemes, times
from foca_dit.analysis import claims, dynamics
from foca_dit.analysis.metrics import psnr
from foca_dit.cli.arguments import add_model, at_least
from foca_dit.clock import NoiseLevels, make_clock
from foca_dit.config import GRANULARITIES
from foca_dit.evaluation.trained import drawing, load, shifted
from foca_dit.files import check_output, write_whole

SCHEMES: dict[str, schemes.Scheme] = {
    "FoCa c=1": schemes.FoCa(feedback=1.0),
    "FoCa c=1/2": schemes.FoCa(feedback=0.5),
    "FoCa anchored": schemes.FoCa(reading="anchored"),
    "TaylorSeer-1": schemes.TaylorSeer(order=1),
    "TaylorSeer-2": schemes.TaylorSeer(order=2),
    "BDF2 alone": schemes.BDF2(),
    "reuse": schemes.Reuse(),
}
ABLATED = ("FoCa c=1", "FoCa c=1/2", "BDF2 alone", "TaylorSeer-1")
HORIZON = 10
STARTS = (0.4, 0.6, 0.8)
"""The paper computes up to timesteps 30, 20 and 10 of 50: these shares of the run."""


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser."""
    parser = commands.add_parser(
        "analyze",
        help="stiffness, truncation errors, horizons: the paper's figures on your model",
        description="Draws a few samples in full, keeps the inner products of the features, and "
        "from them works out local truncation errors, stiffness, errors over the horizon and over "
        "intervals, and the path in its principal plane; then runs the ablation of figure 7. "
        "Writes FILE.json and FILE.png and says which claims of the paper hold on this model. "
        "docs/analysis.md has the definitions.",
    )
    add_model(parser)
    parser.add_argument("--out", type=Path, default=Path("analysis.json"), help="the JSON file")
    parser.add_argument("--samples", type=int, help="samples to draw (default 16, --quick 4)")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps (default 50)")
    parser.add_argument("--interval", type=int, default=5, help="cache interval (default 5)")
    parser.add_argument(
        "--intervals", type=int, nargs="+", default=[2, 3, 5, 7], help="of the ablation"
    )
    parser.add_argument(
        "--granularity", choices=GRANULARITIES, default="stack", help="features (default stack)"
    )
    parser.add_argument(
        "--time", choices=times.names(), default="step", help="time variable (default step)"
    )
    parser.add_argument("--shift", type=float, help="shift of a flow schedule (the model's own)")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="default 1: none")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default 0)")
    parser.add_argument("--quick", action="store_true", help="four samples")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws, analyses, writes, and prints the claims."""
    from tqdm import tqdm

    from foca_dit.cli.chart import write_picture
    from foca_dit.cli.figures import sheet

    samples = (4 if args.quick else 16) if args.samples is None else args.samples
    at_least(
        ("samples", samples, 1),
        ("steps", args.steps, 15),
        ("interval", args.interval, 2),
        ("intervals", min(args.intervals), 2),
    )
    check_output("argument --out", args.out)
    image = args.out.with_suffix(".png")
    if image == args.out:
        raise ValueError(
            "argument --out: expected a name for the JSON file that does not end in .png (the "
            f"sheet goes beside it), got {args.out}"
        )
    check_output("argument --out", image)
    model, scheduler = load(args.model)
    scheduler = shifted(scheduler, args.shift)
    draw = partial(
        drawing(model, scheduler, samples, args.steps, args.guidance_scale), model, args.seed
    )
    with tqdm(total=3 + len(ABLATED) * len(args.intervals), unit="generation") as bar:
        gram, one, timesteps, channels = _record(model, args.granularity, draw, bar.update)
        clock = make_clock(args.time, NoiseLevels.of(scheduler, 1000.0))
        tau = [clock(t, i) for i, t in enumerate(timesteps)]
        bar.set_description("ablation")
        pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
        ablation = _ablation(pipeline, draw, args, bar.update)
    found = _series(gram, one, tau, args.interval)
    found["channel_index"] = _plain(dynamics.channel_index(channels, tau))
    judged = claims.judge(
        found["interval_errors"],
        found["local_errors"],
        found["stiffness"],
        found["horizons"],
        found["growth"],
        ablation,
        args.interval,
    )
    data = {
        "settings": {**vars(args), "samples": samples},
        "timesteps": timesteps,
        "tau": tau,
        **found,
        "ablation": ablation,
        "claims": [claim.as_dict() for claim in judged],
    }
    data["settings"].pop("run")
    write_picture(sheet(data), image)
    write_whole(args.out, json.dumps(_strict(data), indent=1, default=str) + "\n")
    for claim in judged:
        print(f"{claim.source}: {claim.claim}")
        print(f"  {'agrees' if claim.agrees else 'DISAGREES'}: {claim.measured}")
    print(f"written: {args.out}, {image}")
    return 0


def _record(
    model: torch.nn.Module, granularity: str, draw: Callable[[], Any], done: Callable[[], Any]
) -> tuple[dynamics.Array, dynamics.Array, list[float], torch.Tensor]:
    """Gram matrices of all samples and of the first, timesteps, and one feature's trajectory."""
    from foca_dit.calibration.record import Trajectories, recording

    sink = Trajectories()
    with recording(model, granularity, sink) as state:
        draw()
        timesteps = list(state.timesteps)
    total: Any = 0.0
    first: Any = 0.0
    for _, _, values in sink.stacked(len(timesteps)):
        x, y = values.flatten(1), values[:, 0].flatten(1)
        total, first, channels = total + (x @ x.T).numpy(), first + (y @ y.T).numpy(), values
    done()
    return total, first, timesteps, channels


def _series(
    gram: dynamics.Array, one: dynamics.Array, tau: Sequence[float], interval: int
) -> dict[str, Any]:
    """Everything that follows from the Gram matrices."""
    steps = len(tau)
    full = FoCaCacheConfig(cache_interval=interval).resolve().schedule.full_steps(steps)
    used = {name: dynamics.used_values(s, full, tau) for name, s in SCHEMES.items()}
    starts = [min(round(share * steps), steps - 2) for share in STARTS]
    lipschitz, index = dynamics.stiffness(gram, tau)
    plane = {"full": np.eye(steps), **{n: used[n] for n in SCHEMES if n != "BDF2 alone"}}
    paths, shares = dynamics.principal_plane(one, list(plane.values()))

    def horizons(apart: int) -> dict[int, dict[str, list[float]]]:
        """By start: the errors after computing every `apart`-th step up to it."""
        return {
            start: {
                n: _plain(dynamics.horizon_errors(gram, s, tau, start, HORIZON, apart))
                for n, s in SCHEMES.items()
            }
            for start in starts
        }

    at_work = horizons(interval)
    return {
        "full_steps": list(full),
        "interval_errors": {n: _plain(dynamics.relative_errors(gram, u)) for n, u in used.items()},
        "local_errors": {
            n: _plain(dynamics.local_truncation_errors(gram, s, tau)) for n, s in SCHEMES.items()
        },
        "lipschitz": _plain(lipschitz),
        "stiffness": _plain(index),
        "horizons": horizons(1),
        "horizons_from_interval": at_work,
        "growth": {
            n: float(np.mean([dynamics.growth_exponent(at_work[start][n]) for start in starts]))
            for n in SCHEMES
        },
        "plane": {
            "shares": _plain(shares),
            "paths": {n: p.tolist() for n, p in zip(plane, paths, strict=True)},
        },
    }


def _ablation(
    pipeline: Any,
    draw: Callable[[], torch.Tensor],
    args: argparse.Namespace,
    done: Callable[[], Any],
) -> dict[str, dict[int, float]]:
    """PSNR to the full run by scheme and interval, the cache really running."""
    full = draw()
    done()
    found: dict[str, dict[int, float]] = {}
    for name in ABLATED:
        for interval in args.intervals:
            config = FoCaCacheConfig(
                scheme=SCHEMES[name],
                cache_interval=interval,
                granularity=args.granularity,
                time=args.time,
            )
            with foca_cache(pipeline, config):
                images = draw()
            found.setdefault(name, {})[interval] = psnr(images.nan_to_num(0, 2, -2), full)
            done()
    return found


def _plain(values: Any) -> list[float]:
    return [float(v) for v in values]


def _strict(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
