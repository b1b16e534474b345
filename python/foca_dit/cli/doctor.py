"""`foca-dit doctor`: what is built, and which backend serves which device."""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
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
    print(f"torch {torch.__version__}, Triton {_triton()}, CUDA device: {_gpu()}")
    print(f"compiled C++: {', '.join(foca_kernels.built()) or 'nothing'}")
    report = foca_kernels.backend_report()
    for device, row in report.items():
        print(f"{device} tensors: served by {row['backend']}")
        for other, why in row.items():
            if other != "backend":
                print(f"  not by {other}: {why}")
    if "CUDA" not in report:
        print("CUDA tensors: none, this torch is built without CUDA")
    return 0


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
