"""The Triton kernels compile for every supported GPU, to wide loads and stores. Needs no GPU."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

VECTOR = ("ld.global.v4.b32", "st.global.v4.b32")

# 16-byte loads and stores per program, two of each per float32 block. K = 3, L = 4, R = 2.
WIDE = {
    "forecast_calibrate": (3, 1),
    "forecast_calibrate rotate, by value": (3, 2),
    "forecast": (3, 1),
    "forecast by value": (3, 1),
    "forecast_residual": (1 + 12 + 4, 1),
    "forecast_residual ungated": (1 + 12, 2),
    "forecast_residual packed": (1 + 3 + 1, 1),
    "commit": (4, 3),
    "commit by value": (4, 3),
    "sum_partials": (0, 0),
    "write_values": (0, 0),
}


@pytest.fixture(
    scope="module",
    params=[(80, "i32"), (90, "i32"), (100, "i32"), (90, "i64")],
    ids=lambda case: f"sm_{case[0]}-{case[1]}",
)
def compiled(request):
    """What the PTX of every kernel contains. Sizes become i64 from 2^31 elements on."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    script = Path(__file__).with_name("compile_triton.py")
    done = subprocess.run(
        [sys.executable, str(script), *map(str, request.param)],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_compiles(compiled):
    assert set(compiled) == set(WIDE)
    assert all(facts["cubin_bytes"] > 0 for facts in compiled.values())


def test_aligned_features_move_16_bytes_a_lane(compiled):
    for name, expected in WIDE.items():
        loads = collections.Counter(compiled[name]["loads"])
        stores = collections.Counter(compiled[name]["stores"])
        assert (loads[VECTOR[0]], stores[VECTOR[1]]) == expected, name


def test_arithmetic_is_rounded_step_by_step(compiled):
    """No fused multiply-add and no approximate division: what bit parity rests on."""
    for name, facts in compiled.items():
        assert facts["fma"] == 0, name
        # An exactly rounded division is itself made of fused multiply-adds.
        assert facts["machine_fma"] == 0 or name.startswith("forecast_calibrate"), name
        assert facts["approximate_division"] == 0, name


def test_nothing_spills(compiled):
    assert all(facts["local_memory"] == 0 for facts in compiled.values())
