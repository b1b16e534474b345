"""`foca-dit`: one parser, one function per sub-command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from foca_dit.cli import analyze, calibrate, demo, doctor, eval, plan, reproduce, schedule, tune

COMMANDS = (demo, plan, tune, calibrate, analyze, eval, reproduce, schedule, doctor)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; every sub-command brings its own arguments."""
    parser = argparse.ArgumentParser(
        prog="foca-dit",
        description="Feature caching for Diffusion Transformers: compute the network at a few "
        "steps, forecast its features at the others.",
        epilog="Start with `foca-dit demo`. `foca-dit COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_to(commands)
    return parser


def _version() -> str:
    try:
        return version("foca-kernels")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(not installed)"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        status: int = args.run(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"foca-dit {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nfoca-dit {args.command}: interrupted", file=sys.stderr)
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
