"""`foca-dit eval`: this project's caches beside the published and the installed ones."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foca_dit.cli.arguments import add_model, at_least
from foca_dit.evaluation.trained import DEFAULT_MODEL, load_trained
from foca_dit.files import check_output

if TYPE_CHECKING:
    from foca_dit.evaluation.judge import Judge

DEFAULT_JUDGE = DEFAULT_MODEL.parent
QUICK: dict[str, Any] = {"budgets": [18, 12, 9], "images": 32, "seeds": 1}
THOROUGH: dict[str, Any] = {"budgets": [26, 18, 14, 12, 9, 7], "images": 128, "seeds": 3}


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser."""
    parser = commands.add_parser(
        "eval",
        help="caches side by side: quality at equal full steps, and what each costs",
        description="Generates the same images with fewer steps, multistep solvers, this project's "
        "schemes, the published caches and the installed diffusers and cache-dit, at equal budgets "
        "of full steps, and compares them with the full run and with the data. Every row is "
        "written when it is measured: the same command goes on where it was interrupted. "
        "docs/evaluation.md says what each row is.",
    )
    add_model(parser)
    parser.add_argument("--quick", action="store_true", help="three budgets, 32 images, one seed")
    parser.add_argument("--budgets", type=int, nargs="+", metavar="N", help="full steps")
    parser.add_argument("--images", type=int, help="per seed (128; quick 32)")
    parser.add_argument("--seeds", type=int, help="how many (3; quick 1)")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps (default 50)")
    parser.add_argument(
        "--shift", type=float, nargs="+", help="of the flow schedule (default: the scheduler's own)"
    )
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="default 1: none")
    parser.add_argument(
        "--reference-steps",
        type=int,
        metavar="N",
        help="compare with a run of N steps too (kept in the user's cache directory)",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="WORD",
        help="only the row of that name, or else rows whose name contains one of these words",
    )
    parser.add_argument(
        "--judge",
        type=Path,
        metavar="FOLDER",
        help="classifier for FID, IS and accuracy; its classifier.py is run (default "
        "examples/fashion_dit for that model, else none)",
    )
    parser.add_argument("--fresh", action="store_true", help="forget the rows that --out has")
    parser.add_argument("--out", type=Path, default=Path("eval.json"), help="the rows, as JSON")
    parser.add_argument(
        "--draw",
        type=Path,
        metavar="FILE",
        help="a picture of FID over full steps, at the first shift (needs a judge)",
    )
    parser.add_argument("--list", action="store_true", help="say what each row is, and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, prints the tables."""
    import torch
    from tqdm import tqdm

    from foca_dit.evaluation import suite, tables

    if args.list:
        for rival in suite.RIVALS:
            print(f"{rival.name} [{rival.group}]\n    {rival.source}")
        return 0
    check_output("argument --out", args.out)
    if args.draw is not None:
        from foca_dit.cli.chart import picture_format

        check_output("argument --draw", args.draw)
        picture_format("argument --draw", args.draw)
    trained = load_trained(args.model)
    selection = _selection(args, trained.shift)
    judge = _judge(args)
    if args.draw is not None and judge is None:
        raise ValueError("argument --draw: expected --judge too, for FID is what it shows")
    results = suite.Results(args.out, suite.fingerprint(trained.model), args.fresh)
    keys = list(selection.rows())
    print(
        f"{len(keys)} rows, {selection.images} images, {selection.steps} steps, "
        f"{torch.get_num_threads()} threads; rows go to {args.out}"
    )
    try:
        with tqdm(total=len(keys), unit="row") as bar:
            suite.run(trained, selection, results, judge, bar.set_description, bar.update)
    except KeyboardInterrupt:
        if results.rows:
            kept = f"{len(results.rows)} rows are kept in {args.out}"
            print(f"\n{kept}: the same command (without --fresh) goes on there")
        raise
    wanted = [row for row in results.rows if any(suite.is_of(row, key) for _, key in keys)]
    print(tables.report(wanted, pooled=results.pooled))
    if args.draw is not None:
        from foca_dit.cli.chart import write_picture
        from foca_dit.cli.distance import picture

        first = tables.settings(wanted)[0]
        chosen = (tables.of_setting(found, first) for found in (wanted, results.pooled))
        write_picture(picture(*chosen), args.draw)
        print(f"FID over full steps: {args.draw}")
    print(f"written: {args.out}")
    return 0


def _selection(args: argparse.Namespace, shift: float | None) -> Any:
    from foca_dit.evaluation import suite

    default = QUICK if args.quick else THOROUGH
    seeds = default["seeds"] if args.seeds is None else args.seeds
    at_least(("seeds", seeds, 1))
    budgets = args.budgets or [n for n in default["budgets"] if n < args.steps]
    return suite.Selection(
        budgets=tuple(budgets),
        images=default["images"] if args.images is None else args.images,
        seeds=tuple(range(seeds)),
        shifts=tuple(args.shift or [shift]),
        steps=args.steps,
        guidance_scale=args.guidance_scale,
        reference_steps=args.reference_steps,
        rivals=suite.choose(args.rows) if args.rows else suite.RIVALS,
    )


def _judge(args: argparse.Namespace) -> Judge | None:
    from foca_dit.evaluation.judge import load_judge

    if args.judge is not None:
        return load_judge(args.judge)
    return load_judge(DEFAULT_JUDGE) if args.model.resolve() == DEFAULT_MODEL.resolve() else None
