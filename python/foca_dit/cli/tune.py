"""`foca-dit tune`: a plan for one model and sampler, from a few generations of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from foca_dit.cli.arguments import add_model
from foca_dit.config import GRANULARITIES
from foca_dit.evaluation.trained import drawing, load, shifted
from foca_dit.files import check_output

if TYPE_CHECKING:
    from foca_dit.calibration.tune import Measured
    from foca_dit.tuned import TunedPlan

QUICK = {"samples": 4, "probes": 5}
THOROUGH = {"samples": 8, "probes": 10}
CHECKED = 3
"""So many times the recorded samples are drawn, from other seeds, to say how good the plan is."""


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser."""
    parser = commands.add_parser(
        "tune",
        help="fit a plan to one model and sampler: where to compute, how to forecast",
        description="Draws a few samples in full, keeps the inner products of the features, places "
        "the full steps by dynamic programming and fits the weights of the forecasts to them. The "
        "plan is checked on other seeds and written to a JSON file: "
        'FoCaCacheConfig(plan="FILE") applies it. docs/tune.md explains it.',
    )
    add_model(parser)
    parser.add_argument(
        "--budget",
        type=int,
        nargs="+",
        default=[9],
        metavar="N",
        help="full steps per generation (default 9); several budgets share one recording",
    )
    parser.add_argument("--steps", type=int, default=50, help="denoising steps (default 50)")
    parser.add_argument("--samples", type=int, help="samples to record (default 8, with --quick 4)")
    parser.add_argument(
        "--granularity", choices=GRANULARITIES, default="module", help="what to cache (module)"
    )
    parser.add_argument("--shift", type=float, help="shift of a flow schedule (the model's own)")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="default 1: none")
    parser.add_argument("--seed", type=int, default=1000, help="of the recorded samples")
    parser.add_argument("--quick", action="store_true", help="fewer samples and probes")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("plan.json"),
        help="the plan; with several budgets plan-9.json, plan-12.json, ..",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="record anew, though OUT.recording.json is there"
    )
    parser.add_argument(
        "--draw",
        type=Path,
        metavar="FILE",
        help="a picture of quality over full steps beside the uniform schemes (and cache-dit, if "
        "it is installed)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, tunes, writes."""
    from tqdm import tqdm

    from foca_dit.calibration.tune import Measured, Seeds, measure, tune

    settings = QUICK if args.quick else THOROUGH
    samples = settings["samples"] if args.samples is None else args.samples
    check(args, samples)
    model, scheduler = load(args.model)
    scheduler = shifted(scheduler, args.shift)
    seeds = Seeds([args.seed], [args.seed + 1], [args.seed + 2 + i for i in range(CHECKED)])
    probes = settings["probes"]
    # Generations: recorded, probed, and per budget up to three candidates chosen from and one
    # checked, each beside the full run.
    total = (2 + probes) + len(args.budget) * (4 + 2 * CHECKED)
    print(f"{samples} samples, {args.steps} steps, {torch.get_num_threads()} threads")
    recording = _recording(args.out)
    recorded = {
        "samples": samples,
        "probes": probes,
        "steps": args.steps,
        "granularity": args.granularity,
        "scheduler": {k: v for k, v in scheduler.config.items() if not k.startswith("_")},
        "guidance_scale": args.guidance_scale,
        "seed": args.seed,
    }
    plans = []
    of_model = drawing(model, scheduler, samples, args.steps, args.guidance_scale)
    draw = partial(of_model, model)
    try:
        with tqdm(total=total, unit="generation") as bar:
            bar.set_description("recording")
            measured = None if args.fresh else Measured.load(recording, recorded)
            if measured is None:
                measured = measure(
                    model, scheduler, draw, args.granularity, seeds.record, probes, bar.update
                )
                measured.save(recording, recorded)
            else:
                _check_origin(measured, recording, model, args.granularity, scheduler)
                bar.write(f"recorded before: {recording}")
            for budget in args.budget:
                bar.set_description(f"{budget} full steps")
                plan = tune(model, draw, measured, budget, seeds, bar.update)
                plan.save(_file(args.out, budget, len(args.budget)))
                plans.append(plan)
            bar.total = bar.n
    except KeyboardInterrupt:
        if recording.exists():
            print(f"\nrecorded: {recording}: the same command goes on after the recording")
        raise
    print(table(plans))
    for budget in args.budget:
        print(f"written: {_file(args.out, budget, len(args.budget))}")
    if args.draw is not None:
        from foca_dit.cli.chart import write_picture
        from foca_dit.cli.tradeoff import measure_rivals, picture

        pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
        lines = measure_rivals(pipeline, of_model, seeds.check, args.granularity, args.steps)
        lines["tuned"] = [
            (len(plan.plan.full_steps), value)
            for plan in plans
            if (value := plan.report["check_psnr"]) is not None
        ]
        write_picture(picture(lines, args.steps), args.draw)
        print(f"quality over full steps: {args.draw}")
    return 0


def check(args: argparse.Namespace, samples: int) -> None:
    """Refuses arguments that cannot work before anything is computed."""
    for name, value, least in (
        ("samples", samples, 1),
        ("steps", args.steps, 3),
        ("budget", min(args.budget), 2),
    ):
        if value < least:
            raise ValueError(f"argument --{name}: expected at least {least}, got {value}")
    if max(args.budget) >= args.steps:
        raise ValueError(
            f"argument --budget: expected fewer than --steps {args.steps}, got {max(args.budget)}"
        )
    check_output("argument --out", args.out)
    for budget in args.budget:
        check_output("argument --out", _file(args.out, budget, len(args.budget)))
    check_output("argument --out", _recording(args.out))
    if args.draw is not None:
        from foca_dit.cli.chart import picture_format

        check_output("argument --draw", args.draw)
        picture_format("argument --draw", args.draw)


def table(plans: Sequence[TunedPlan]) -> str:
    """What was found, as text."""
    head = f"{'full steps':<12}{'PSNR dB':>8}  {'placed by':<21}steps"
    lines = [head, "-" * (len(head) + 40)]
    for plan in plans:
        report = plan.report
        where = ", ".join(map(str, plan.plan.full_steps))
        value = report["check_psnr"]
        shown = "-" if value is None else f"{value:.1f}"
        lines.append(f"{report['budget']:<12}{shown:>8}  {report['chosen']:<21}{where}")
    return "\n".join(lines)


def _check_origin(
    measured: Measured, recording: Path, model: torch.nn.Module, granularity: str, scheduler: Any
) -> None:
    """Refuses the recording of another model; the message says what to do about it."""
    try:
        measured.origin.check(model, granularity, scheduler)
    except ValueError as error:
        raise ValueError(
            f"{recording}: expected a recording of this model: record anew with --fresh, or name "
            f"another --out ({error})"
        ) from None


def _recording(out: Path) -> Path:
    return out.with_name(f"{out.stem}.recording.json")


def _file(out: Path, budget: int, budgets: int) -> Path:
    return out if budgets == 1 else out.with_name(f"{out.stem}-{budget}{out.suffix}")
