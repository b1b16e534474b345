"""`foca-dit plan`: what a cache would hold and save in a published model, without running it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from foca_dit.config import GRANULARITIES, PRESETS, FoCaCacheConfig


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser."""
    from foca_dit.adapters.published import PUBLISHED

    parser = commands.add_parser(
        "plan",
        help="say what a cache will hold and save in a published model",
        description="Builds the published configuration without weights, counts histories, bytes "
        "and FLOPs at every granularity, and says when caching will not pay. Nothing is computed. "
        "For a model of your own: foca_dit.plan_foca_cache(model, inputs).",
    )
    parser.add_argument(
        "model", choices=sorted(PUBLISHED), metavar="MODEL", help="one of: %(choices)s"
    )
    parser.add_argument("--height", type=int, help="pixels (default: the model's usual size)")
    parser.add_argument("--width", type=int, help="pixels")
    parser.add_argument("--frames", type=int, help="frames of a video")
    parser.add_argument("--batch", type=int, help="samples in one call; guidance in one call: two")
    parser.add_argument(
        "--branches", type=int, default=1, help="guidance in so many calls a step (default 1)"
    )
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's usual)")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default")
    parser.add_argument("--interval", type=int, help="cache interval N, instead of the preset's")
    parser.add_argument("--warmup", type=int, help="full steps at the start (default 3)")
    parser.add_argument("--granularity", choices=GRANULARITIES, help="instead of the preset's")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    from foca_dit.adapters.published import PUBLISHED
    from foca_dit.estimate import plan_foca_cache

    published = PUBLISHED[args.model]
    sizes = ("height", "width", "frames", "batch")
    asked = {name: getattr(args, name) for name in sizes if getattr(args, name) is not None}
    given = asked | {"branches": args.branches, "steps": args.steps, "warmup": args.warmup}
    for name, value in given.items():
        if value is not None and value < 1:
            raise ValueError(f"argument --{name}: expected an integer >= 1, got {value}")
    if args.frames is not None and published.request.frames == 1:
        raise ValueError(f"argument --frames: expected none for the image model {args.model}")
    if args.warmup is not None and args.interval is None and args.preset != "paper":
        raise ValueError("argument --warmup: expected --interval too: the preset's schedule adapts")
    request = replace(published.request, **asked)
    size = f"{request.height}x{request.width}"
    inputs = published.inputs(request)
    if not inputs["hidden_states"].numel():
        raise ValueError(f"argument --height, --width: expected one token or more, got {size}")
    config = FoCaCacheConfig(
        preset=args.preset,
        cache_interval=args.interval,
        disable_cache_before_step=3 if args.warmup is None else args.warmup,
        granularity=args.granularity,
    )
    plan = plan_foca_cache(
        published.build(),
        inputs,
        config,
        steps=published.steps if args.steps is None else args.steps,
        branches=args.branches,
    )
    if request.frames > 1:
        size += f", {request.frames} frames"
    if args.branches > 1:
        size += f", {args.branches} calls a step"
    print(f"{args.model}, {size}, batch {request.batch}")
    print(plan)
    return 0
