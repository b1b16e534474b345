"""`foca-dit schedule`: which steps are computed, and with which weights the others are forecast."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from foca_dit import schemes
from foca_dit.config import FoCaCacheConfig
from foca_dit.files import check_output, write_whole
from foca_dit.plan import Plan


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser."""
    parser = commands.add_parser(
        "schedule",
        help="print the full steps of a setting, and export its tables as JSON",
        description="Prints which steps of a generation are computed in full and what speedup that "
        "allows at best. With --json FILE it also writes the plan (steps, transition tables, "
        "forecast weights), ready for an engine in any language: docs/plan-format.md. Time is the "
        "step's index here; for other settings there is foca_dit.plan.Plan.build in Python.",
    )
    parser.add_argument("--steps", type=int, default=50, help="denoising steps (default 50)")
    parser.add_argument("--interval", type=int, default=5, help="cache interval N (default 5)")
    parser.add_argument("--warmup", type=int, default=3, help="full steps at the start (default 3)")
    parser.add_argument(
        "--scheme", default="foca", choices=schemes.names(), help="forecaster (default foca)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan to FILE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the schedule and writes the plan."""
    for name in ("steps", "interval", "warmup"):
        if (value := getattr(args, name)) < 1:
            raise ValueError(f"argument --{name}: expected an integer >= 1, got {value}")
    if args.json is not None:
        check_output("argument --json", args.json)
    settings = FoCaCacheConfig(
        cache_interval=args.interval, disable_cache_before_step=args.warmup, scheme=args.scheme
    ).resolve()
    plan = Plan.build(settings.scheme, settings.schedule, tau=range(args.steps))
    full = plan.full_steps
    print(f"{settings.scheme}, history of {settings.scheme.history_size} tensors per feature")
    print(f"full steps ({len(full)} of {args.steps}): {', '.join(map(str, full))}")
    print(f"ideal speedup: {args.steps / len(full):.2f}x")
    if args.json:
        write_whole(args.json, plan.to_json())
        print(f"plan written to {args.json}")
    return 0
