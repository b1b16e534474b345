"""The backends under one face: a name, a device, and a function per operator overload."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from foca_kernels import backend_report, reference
from foca_kernels.registry import FUNCTIONS

BACKENDS = ("reference-cpu", "cpp-cpu", "triton-cpu", "reference-cuda", "cpp-cuda", "triton-cuda")


@dataclass(frozen=True)
class Backend:
    """``backend.call("commit_", ...)`` calls that overload of the backend."""

    name: str
    device: str
    functions: dict[str, Callable[..., Any]]

    def call(self, function: str, *args: Any) -> Any:
        if function == "forecast_out":  # the one keyword-only argument of all schemas
            return self.functions[function](*args[:-1], out=args[-1])
        return self.functions[function](*args)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        kernel_dtypes = (torch.float32, torch.bfloat16, torch.float16)
        return (*kernel_dtypes, torch.float64) if self.is_reference else kernel_dtypes

    @property
    def is_reference(self) -> bool:
        return self.name.startswith("reference")

    @property
    def interpreted(self) -> bool:
        """Runs in Triton's interpreter: keep tensors small."""
        return self.name == "triton-cpu"


def overload(name: str) -> Any:
    """torch.ops.foca.<op>.<overload> of a schema's name."""
    op, _, kind = name.partition(".")
    return getattr(getattr(torch.ops.foca, op), kind or "default")


def _functions(module: Any) -> dict[str, Callable[..., Any]]:
    return {function: getattr(module, function) for function in FUNCTIONS.values()}


def find_backend(name: str) -> Backend | str:
    """The backend, or why it is not to be had here."""
    kind, device = name.split("-")
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    if kind == "reference":
        return Backend(name, device, _functions(reference))
    if kind == "cpp":
        serving = backend_report().get(device.upper(), {})
        if serving.get("backend") != "cpp":
            return f"the C++ backend does not serve {device}: {serving}"
        return Backend(name, device, {f: overload(n) for n, f in FUNCTIONS.items()})
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    kernels = importlib.import_module("foca_kernels.triton_kernels")
    if bool(kernels.INTERPRETED.value) != (device == "cpu"):
        return "Triton either interprets or compiles, one of them per process"
    return Backend(name, device, _functions(importlib.import_module("foca_kernels.triton_ops")))
