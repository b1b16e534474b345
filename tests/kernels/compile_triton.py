"""Compiles every Triton kernel without a GPU; prints what PTX and machine code say, as JSON.

A program of its own, run by ``test_triton_compile.py``: the other tests run the kernels in Triton's
interpreter, and one process cannot do both.

    python tests/kernels/compile_triton.py 90 i32     # compute capability 9.0, sizes below 2^31
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from foca_kernels import triton_kernels as kernels
from foca_kernels.triton_ops import BLOCK_SIZE, OPTIONS

BF16, FP32, K, R, L = "*bf16", "*fp32", 3, 2, 4
SIZES = ("gate_period", "n_columns", "n_elements", "gate_stride")

# kernel, signature of its run-time arguments, compile-time arguments
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "forecast_calibrate": (
        kernels.forecast_calibrate_kernel,
        {"f_k_ptr": BF16, "f_km1_ptr": BF16, "d_anchor_ptr": BF16, "steps": FP32},
        {"BY_VALUE": False, "ROTATE": False},
    ),
    "forecast_calibrate rotate, by value": (
        kernels.forecast_calibrate_kernel,
        {"f_k_ptr": BF16, "f_km1_ptr": BF16, "d_anchor_ptr": BF16, "steps": ("fp32",) * 2},
        {"BY_VALUE": True, "ROTATE": True},
    ),
    "forecast": (
        kernels.forecast_kernel,
        {"history": (BF16,) * K, "weights": FP32, "out_ptr": BF16},
        {"K": K, "BY_VALUE": False},
    ),
    "forecast by value": (
        kernels.forecast_kernel,
        {"history": (BF16,) * K, "weights": ("fp32",) * K, "out_ptr": BF16},
        {"K": K, "BY_VALUE": True},
    ),
    "forecast_residual": (
        kernels.forecast_residual_kernel,
        {
            "x_ptr": BF16, "out_ptr": BF16, "history": (BF16,) * (L * K),
            "weights": ("fp32",) * (L * K), "gates": (BF16,) * L,
        },
        {"L": L, "K": K, "BY_VALUE": True, "PER_FEATURE": True, "GATED": True},
    ),
    "forecast_residual ungated": (
        kernels.forecast_residual_kernel,
        {
            "x_ptr": BF16, "out_ptr": FP32, "history": (BF16,) * (L * K), "weights": FP32,
        },
        {"L": L, "K": K, "BY_VALUE": False, "PER_FEATURE": False, "GATED": False, "gates": None},
    ),
    "forecast_residual packed": (
        kernels.forecast_residual_packed_kernel,
        {"x_ptr": BF16, "history_ptr": BF16, "weights_ptr": FP32, "gates_ptr": BF16},
        {"K": K, "GATED": True},
    ),
    "commit": (
        kernels.commit_kernel,
        {"feature_ptr": BF16, "history": (BF16,) * K, "transition": FP32, "partial_ptr": FP32},
        {"K": K, "R": R, "BY_VALUE": False},
    ),
    "commit by value": (
        kernels.commit_kernel,
        {
            "feature_ptr": BF16, "history": (BF16,) * K,
            "transition": ("fp32",) * ((K + R) * (K + 1)), "partial_ptr": FP32,
        },
        {"K": K, "R": R, "BY_VALUE": True},
    ),
    "sum_partials": (
        kernels.sum_partials_kernel,
        {"partial_ptr": FP32, "stats_ptr": FP32, "n_partials": "i32"},
        {},
    ),
    "write_values": (
        kernels.write_values_kernel,
        {"out_ptr": FP32, "values": ("fp32",) * 8},
        {"N": 8},
    ),
}  # fmt: skip


def signature_of(
    kernel: Any, given: dict[str, Any], constants: dict[str, Any], size_type: str
) -> dict[str, Any]:
    """Every argument of the kernel in order: types as given, sizes for the rest."""
    types = {}
    for name in kernel.arg_names:
        constant = name in constants
        types[name] = "constexpr" if constant else given.get(name, size_type)
    return types


def aligned(signature: dict[str, Any]) -> dict[tuple[int, ...], Any]:
    """What the launcher finds for 16-byte aligned tensors and sizes that are multiples of 16."""
    hint = [["tt.divisibility", 16]]
    found: dict[tuple[int, ...], Any] = {}
    for i, (name, kind) in enumerate(signature.items()):
        if isinstance(kind, tuple):
            found |= {(i, j): hint for j, part in enumerate(kind) if part.startswith("*")}
        elif kind.startswith("*") or name in SIZES:
            found[(i,)] = hint
    return found


def compile_case(name: str, capability: int, size_type: str) -> dict[str, Any]:
    kernel, given, constants = CASES[name]
    if "BLOCK_SIZE" in kernel.arg_names:
        constants = {**constants, "BLOCK_SIZE": BLOCK_SIZE}
    signature = signature_of(kernel, given, constants, size_type)
    index = {argument: (kernel.arg_names.index(argument),) for argument in constants}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={index[argument]: value for argument, value in constants.items()},
        attrs=aligned(signature),
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options=dict(OPTIONS)
    )
    ptx = compiled.asm["ptx"]
    # Disassembling takes longer than compiling: once is enough.
    sass = compiled.asm["sass"] if (capability, size_type) == (90, "i32") else ""
    return {
        "loads": sorted(re.findall(r"ld\.global[.\w:]*", ptx)),
        "stores": sorted(re.findall(r"st\.global[.\w:]*", ptx)),
        "fma": len(re.findall(r"\bfma\.rn\.f32", ptx)),
        "machine_fma": len(re.findall(r"\bFFMA\b", sass)),
        "approximate_division": len(re.findall(r"div\.(full|approx)", ptx)),
        "local_memory": len(re.findall(r"\b(ld|st)\.local", ptx)),
        "cubin_bytes": len(compiled.asm.get("cubin", b"")),
    }


if __name__ == "__main__":
    print(json.dumps({name: compile_case(name, int(sys.argv[1]), sys.argv[2]) for name in CASES}))
