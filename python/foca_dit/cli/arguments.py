"""Arguments that several sub-commands have, and the checks that come before any work."""

from __future__ import annotations

import argparse
from pathlib import Path

from foca_dit.evaluation.trained import DEFAULT_MODEL


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds `model`, the folder of a trained model."""
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        default=DEFAULT_MODEL,
        help=f"folder with transformer/ and scheduler/ (default {DEFAULT_MODEL})",
    )


def at_least(*rules: tuple[str, int, int]) -> None:
    """Refuses numbers that are too small.

    Args:
        rules: of each argument its name, its value, and the least that works.

    Raises:
        ValueError: the first one that is smaller.
    """
    for name, value, least in rules:
        if value < least:
            raise ValueError(f"argument --{name}: expected at least {least}, got {value}")
