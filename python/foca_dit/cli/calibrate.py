"""`foca-dit calibrate`: error compensation from calibration samples, GOC's and EOC's."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from foca_dit import schemes
from foca_dit.cli.arguments import add_model, at_least
from foca_dit.evaluation.trained import drawing, load
from foca_dit.files import check_output
from foca_dit.origin import Origin
from foca_dit.schedules import Interval


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser."""
    parser = commands.add_parser(
        "calibrate",
        help="measure what GOC and EOC need to know about a model, into a file",
        description="Draws a few samples in full and writes a scheme to a file. goc: the steps at "
        "which propagating the last jump helps (the inflection set). eoc: a prior for every cached "
        "module and skipped step, kept only where it lowers the error on samples that it was not "
        'made from; the tensors go beside the file. Apply with FoCaCacheConfig(scheme=load_scheme("'
        'FILE")), load_scheme from foca_dit.calibration.files.',
    )
    parser.add_argument("method", choices=("goc", "eoc"))
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--samples", type=int, default=8, help="per generation (default 8)")
    parser.add_argument(
        "--generations", type=int, default=4, help="generations to draw; eoc judges on the half"
    )
    parser.add_argument("--steps", type=int, default=50, help="denoising steps (default 50)")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="default 1: none")
    parser.add_argument("--seed", type=int, default=1000, help="of the first generation")
    parser.add_argument("--eta", type=float, help="weight (goc 1.2, eoc 1)")
    parser.add_argument("--interval", type=int, default=3, help="eoc: cache interval (default 3)")
    parser.add_argument("--warmup", type=int, default=3, help="eoc: full steps at the start")
    parser.add_argument(
        "--prior", choices=("ratio", "difference"), default="ratio", help="eoc: kind of prior"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws, calibrates, writes."""
    from tqdm import tqdm

    from foca_dit.calibration import eoc, files, inflection, means
    from foca_dit.calibration.calibrated import Calibrated

    check_output("argument --out", args.out)
    if args.method == "eoc":
        eoc.tensors_beside(args.out)  # refuses before anything is computed
    at_least(
        ("samples", args.samples, 1),
        ("generations", args.generations, 2 if args.method == "eoc" else 1),
        ("steps", args.steps, 3),
    )
    schedule = Interval(args.interval, args.warmup)
    model, scheduler = load(args.model)
    draw = drawing(model, scheduler, args.samples, args.steps, args.guidance_scale)
    runs = [partial(draw, model, args.seed + i) for i in range(args.generations)]
    with tqdm(total=len(runs), unit="generation") as bar:
        if args.method == "goc":
            found = means.record_means(model, "module", runs, bar.update)
            steps = inflection.inflection_steps(found)
            goc = Calibrated(
                schemes.GOC(1.2 if args.eta is None else args.eta, steps),
                made_for=Origin.of(model, "module", scheduler, found.timesteps),
            )
            report: dict[str, Any] = {"samples": found.samples, "steps": args.steps}
            files.save_goc(goc, args.out, report)
            text = f"inflection set: {len(steps)} of {args.steps} steps"
        else:
            half = (len(runs) + 1) // 2
            scheme, report = eoc.calibrate_eoc(
                model,
                schemes.Reuse(),
                schedule,
                runs[:half],
                runs[half:],
                prior=args.prior,
                eta=1.0 if args.eta is None else args.eta,
                scheduler=scheduler,
                done=bar.update,
            )
            eoc.save_eoc(scheme, args.out, {**report, "interval": args.interval})
            saved = 1 - report["error_with"] / max(report["error_without"], 1e-300)
            text = (
                f"{report['corrected']} of {report['judged']} forecasts are corrected: "
                f"{saved:.1%} less squared error on the samples judged on"
            )
    print(text)
    print(f"written: {args.out}")
    return 0
