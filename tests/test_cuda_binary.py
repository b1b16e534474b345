"""The compiled CUDA kernels, read with a disassembler: what can be known about them without a GPU.

Skipped where the CUDA library is not built, or where nothing can disassemble it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "inspect_cuda", ROOT / "benchmarks" / "inspect_cuda.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


inspect_cuda = _load_script()

pytestmark = [
    pytest.mark.skipif(not inspect_cuda.LIBRARY.exists(), reason="the CUDA library is not built"),
    pytest.mark.skipif(inspect_cuda.find_cuobjdump() is None, reason="no cuobjdump"),
]


def _architectures() -> list:
    """The first one always, the others (ten seconds each) with the slow tests."""
    first, *others = inspect_cuda.architectures() or ["none"]
    return [first, *(pytest.param(arch, marks=pytest.mark.slow) for arch in others)]


@pytest.fixture(scope="module", params=_architectures())
def kernels(request: pytest.FixtureRequest) -> list:
    found = inspect_cuda.inspect(arch=request.param)
    assert found
    return found


def test_every_op_has_its_kernels(kernels: list) -> None:
    bases = {k.name.split("<")[0] for k in kernels}
    assert bases == {
        "commit",
        "commit_stats",
        "forecast",
        "forecast_calibrate",
        "forecast_residual",
        "forecast_residual_scalar",
    }


def test_nothing_spills(kernels: list) -> None:
    spilling = [(k.name, k.arch) for k in kernels if k.local_bytes or k.local_accesses]
    assert spilling == []


def test_two_blocks_fit_where_a_network_is_walked(kernels: list) -> None:
    crowded = [k for k in kernels if k.name.startswith("forecast_residual<") and k.registers > 128]
    assert crowded == []


def test_aligned_tensors_move_16_bytes_at_a_time(kernels: list) -> None:
    vectorized = [k for k in kernels if k.vec_size > 1]
    assert vectorized
    for k in vectorized:
        assert k.stores[128] >= 1, k
        # Each tensor that is read has a 128-bit load for every narrow one of the tail.
        assert k.loads[128] >= 2 or k.name.endswith(", 1>"), k


def test_no_fused_multiply_add(kernels: list) -> None:
    """All backends round alike; the ones in forecast_calibrate are its division's."""
    fused = {k.name.split("<")[0] for k in kernels if k.ffma}
    assert fused <= {"forecast_calibrate"}
