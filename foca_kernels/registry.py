"""Defines the operators and decides, once at import, which backend serves each device.

The choice is made by registration, so a call goes from PyTorch's dispatcher straight into the
kernel (outside of inference mode by way of a function that counts writes). The reference is
registered for every device; a compiled library or Triton, registered for one device, takes
precedence there.

    device   FOCA_BACKEND=auto (default)           cpp        triton          reference
    CPU      C++ if built, else the reference      C++        as auto (1)     the reference
    CUDA     C++ if built, else Triton, else ref.  C++ (2)    Triton          the reference

(1) With TRITON_INTERPRET=1 the Triton kernels run interpreted on the CPU: slow, for tests.
(2) Needed only where PyTorch itself has CUDA.

A choice that cannot be met raises ``ImportError`` at import.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from . import fake, reference
from .rules import check_not_negated
from .schemas import NAMESPACE, SCHEMAS

BACKENDS = ("auto", "cpp", "triton", "reference")
LIBRARIES = {"CPU": "_C.abi3.so", "CUDA": "_C_cuda.abi3.so"}

# Name of the Python function behind each overload, the same in every Python backend.
FUNCTIONS = {
    name: name.replace("_.packed", "_packed_").replace("_.list", "_list_").replace(".", "_")
    for name in SCHEMAS
}

_report: dict[str, dict[str, str]] = {}


def _define(library: torch.library.Library) -> None:
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=tags)
        function = FUNCTIONS[name]
        library.impl(name, getattr(reference, function), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake.kernel(function), lib=library)
        if "!" in schema:
            library.impl(name, _counting_writes(name), "ADInplaceOrView", with_keyset=True)
            library.impl(name, _resolving_negatives(name), "Negative", with_keyset=True)


def _overload(name: str) -> torch._ops.OpOverload:
    packet, _, overload = name.partition(".")
    op: torch._ops.OpOverload = getattr(getattr(torch.ops.foca, packet), overload or "default")
    return op


Written = list[tuple[str, Sequence[torch.Tensor]]]


def _written_by(op: torch._ops.OpOverload) -> Callable[..., Written]:
    """A function of a call's arguments: those that it writes, as (label, tensors).

    ``label.format(i)`` is what an error calls the i-th tensor.
    """
    written = [
        (i, argument.name, "[{}]" if "List" in str(argument.type) else "")
        for i, argument in enumerate(op._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]

    def tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Written:
        found = [(n + end, args[i] if i < len(args) else kwargs.get(n)) for i, n, end in written]
        return [(label, [v] if isinstance(v, torch.Tensor) else v or ()) for label, v in found]

    return tensors


def _counting_writes(name: str) -> Callable[..., Any]:
    """What PyTorch generates for its own in-place operators: written tensors count a version.

    Autograd then refuses to go backwards through what was computed from a value that is gone. With
    tensors that were made in inference mode this is not called.
    """
    op = _overload(name)
    written = _written_by(op)

    def counted(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        # No key is switched off for the calls below: the kernels see by them whether an argument
        # requires a gradient.
        result = op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs)
        for _, tensors in written(args, kwargs):
            for tensor in tensors:
                if not tensor.is_inference():
                    torch.autograd.graph.increment_version(tensor)
        return result

    return counted


def _resolving_negatives(name: str) -> Callable[..., Any]:
    """In the place of PyTorch's fallback for tensors that stand for the negatives of their memory.

    That one, too, gives the kernels a copy of such a tensor, but of a written one it copies back
    only what the operator returns; ours return nothing. So written ones are refused.
    """
    op = _overload(name)
    written = _written_by(op)

    def resolved(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        for label, tensors in written(args, kwargs):
            for i, tensor in enumerate(tensors):
                check_not_negated(name.partition(".")[0], label.format(i), tensor)
        values = [_without_negatives(value) for value in args]
        named_values = {key: _without_negatives(value) for key, value in kwargs.items()}
        after = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.Negative)
        return op.redispatch(keyset & after, *values, **named_values)

    return resolved


def _without_negatives(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.resolve_neg()
    return [t.resolve_neg() for t in value] if isinstance(value, (list, tuple)) else value


def _missing(backend: str, device: str) -> str | None:
    """Why a backend is not to be had for a device, as far as that shows without loading it."""
    if backend == "cpp":
        exists = (Path(__file__).parent / LIBRARIES[device]).exists()
        return None if exists else f"{LIBRARIES[device]} is not built (see CONTRIBUTING.md)"
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if device == "CPU" and os.environ.get("TRITON_INTERPRET") != "1":
            return "Triton runs on the CPU only with TRITON_INTERPRET=1"
    return None


def _load_backend(library: torch.library.Library, backend: str, device: str) -> str | None:
    """Registers a backend's kernels for a device; returns why that failed, or None."""
    if backend == "cpp":
        try:
            torch.ops.load_library(str(Path(__file__).parent / LIBRARIES[device]))
        except OSError as error:
            name = Path(LIBRARIES[device]).name
            return f"{name} does not load: {error.__cause__ or error}"
    if backend == "triton":
        try:
            module = importlib.import_module(".triton_ops", __package__)
        except ImportError as error:
            return f"Triton does not load: {error}"
        for name, function in FUNCTIONS.items():
            library.impl(name, getattr(module, function), device)
    return None


def _candidates(choice: str, device: str) -> tuple[str, ...]:
    """Backends to try for a device, best first."""
    if choice == "auto":
        return ("cpp", "reference") if device == "CPU" else ("cpp", "triton", "reference")
    if choice == "triton" and device == "CPU":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return ("triton",) if interpreted else ("cpp", "reference")
    return (choice,)


def _serve(library: torch.library.Library, choice: str, device: str) -> None:
    refused: dict[str, str] = {}
    for backend in _candidates(choice, device):
        why = _missing(backend, device) or _load_backend(library, backend, device)
        if why is None:
            _report[device] = {"backend": backend, **refused}
            return
        refused[backend] = why
    raise _refusal(choice, device, refused)


def _refusal(choice: str, device: str, reasons: Mapping[str, str | None]) -> ImportError:
    why = "; ".join(filter(None, reasons.values()))
    return ImportError(f"FOCA_BACKEND={choice} cannot serve {device} tensors: {why}")


def _devices(choice: str) -> list[str]:
    # A question about the build of PyTorch, not about the machine: asking the driver here would
    # initialise CUDA at import and break processes that fork later.
    has_cuda = torch.backends.cuda.is_built()
    if choice == "triton" and not has_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ImportError(
            "FOCA_BACKEND=triton: this PyTorch has no CUDA, and without TRITON_INTERPRET=1 "
            "Triton does not run on the CPU"
        )
    return ["CPU", "CUDA"] if has_cuda else ["CPU"]


def _load() -> torch.library.Library:
    choice = os.environ.get("FOCA_BACKEND") or "auto"
    if choice not in BACKENDS:
        raise ImportError(f"FOCA_BACKEND={choice}: expected one of {', '.join(BACKENDS)}")
    devices = _devices(choice)
    # What is known to fail fails before the operators are defined: a process can do that only once.
    for device in devices:
        reasons = {backend: _missing(backend, device) for backend in _candidates(choice, device)}
        if all(reasons.values()):
            raise _refusal(choice, device, reasons)
    library = torch.library.Library(NAMESPACE, "DEF")
    _define(library)
    for device in devices:
        _serve(library, choice, device)
    return library


def built() -> tuple[str, ...]:
    """The compiled parts that are here: kernels by device, and the planner."""
    folder = Path(__file__).parent
    kernels = [f"{name} kernels" for name, file in LIBRARIES.items() if (folder / file).exists()]
    has_planner = importlib.util.find_spec(f"{__package__}._planner") is not None
    return (*kernels, *(["planner"] if has_planner else []))


def backend_report() -> dict[str, dict[str, str]]:
    """Which backend serves each device, and why the ones preferred to it do not.

    Returns:
        For "CPU" and, where PyTorch has CUDA, "CUDA": {"backend": the one in use, and for each
        backend that was tried before it: the reason why it could not be used}. Devices that are
        not listed are served by the reference.
    """
    return {device: dict(row) for device, row in _report.items()}


# Kept alive for the life of the process: registrations end with the object.
_library = _load()
