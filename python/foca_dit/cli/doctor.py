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
        "others; and tries an operator on each. FOCA_BACKEND=auto|cpp|triton|reference chooses.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the report; 1 if an operator that should be served gives an error or a wrong value."""
    status = 0
    print(f"torch {torch.__version__}, Triton {_triton()}, CUDA device: {_gpu()}")
    print(f"compiled C++: {', '.join(foca_kernels.built()) or 'nothing'}")
    report = foca_kernels.backend_report()
    for device, row in report.items():
        found = "not tried, there is no device"
        if device == "CPU" or torch.cuda.is_available():
            wrong = try_operator(device.lower())
            found = wrong or "an operator gives the right values"
            status = 1 if wrong else status
        print(f"{device} tensors: served by {row['backend']}; {found}")
        for other, why in row.items():
            if other != "backend":
                print(f"  not by {other}: {why}")
    if "CUDA" not in report:
        print("CUDA tensors: none, this torch is built without CUDA")
    return status


def try_operator(device: str) -> str | None:
    """What is wrong with a small forecast on a device, or None."""
    history = torch.arange(2.0 * 1000, device=device).view(2, 1000)
    try:
        got = torch.ops.foca.forecast(list(history), torch.tensor([1.0, -2.0])).cpu()
    except Exception as error:  # a compiler's, too: whatever it is, doctor is there to say it
        return f"ERROR: {type(error).__name__}: {error}"
    expected = (history[0] - 2 * history[1]).cpu()
    return None if torch.equal(got, expected) else "ERROR: an operator gives wrong values"


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
