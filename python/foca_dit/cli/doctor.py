"""`foca-dit doctor`: what is built, and which backend serves which device."""

from __future__ import annotations

import argparse
from typing import Any

import torch

import foca_kernels


def add_to(commands: Any) -> None:
    """Adds the sub-command to the parser."""
    parser = commands.add_parser(
        "doctor",
        help="say what is built and which backend serves which device",
        description="Says what is built, which backend serves which device, and why not the "
        "others. FOCA_BACKEND=auto|cpp|triton|reference chooses.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    print(f"torch {torch.__version__}, CUDA device: {_gpu()}")
    for device, report in foca_kernels.backend_report().items():
        print(f"{device}: {report}")
    return 0


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
