"""All backends round alike: bit for bit equal to the reference on the CPU, for drawn inputs.

They share one order of operations and none of them contracts multiplications into additions. Sums
of squares are not compared here: each backend has its own fixed order for them.
"""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from backends import find_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import Maker, clones, same_bits

CPU = find_backend("reference-cpu")
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

dtypes = st.sampled_from([FP32, BF16, FP16])
seeds = st.integers(0, 2**20)
shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple) | st.tuples(st.integers(0, 5000))
cubes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 70))
weight = st.just(0.0) | st.floats(-4, 4, width=32) | st.integers(-3, 3).map(float)
step = st.floats(2**-6, 2**6, width=32)


def examples(backend):
    """Fewer in the interpreter; always the same ones, so that a failure is not a coincidence."""
    slow = backend.interpreted or backend is CPU
    return settings(max_examples=15 if slow else 60, derandomize=True)


def same(backend, function, args, results):
    """Runs a call here and on the reference; ``results`` picks what is compared."""
    device_args = [
        [t.to(backend.device) for t in a] if isinstance(a, list) else
        a.to(backend.device) if torch.is_tensor(a) else a
        for a in args
    ]  # fmt: skip
    copies = [clones(a) if isinstance(a, list) else a.clone() if torch.is_tensor(a) else a
              for a in args]  # fmt: skip
    want = CPU.call(function, *copies)
    got = backend.call(function, *device_args)
    for a, b in zip(results(device_args, got), results(copies, want), strict=True):
        assert same_bits(a.cpu(), b)


def test_forecast_calibrate(backend):
    @examples(backend)
    @given(dtypes, shapes, step, step, st.booleans(), seeds)
    def check(dtype, shape, h, h_prev, negative, seed):
        sign = -1 if negative else 1
        tensors = Maker(dtype, seed=seed).many(3, *shape)
        steps = torch.tensor([sign * h, sign * h_prev])
        for function in ("forecast_calibrate_tensor", "forecast_calibrate_rotate"):
            same(backend, function, [*tensors, steps], lambda args, _: args[:3])
        numbers = [*tensors, *steps.tolist()]
        same(backend, "forecast_calibrate", numbers, lambda args, _: args[:3])

    check()


def test_forecast(backend):
    @examples(backend)
    @given(dtypes, shapes, st.lists(weight, min_size=1, max_size=8), seeds)
    def check(dtype, shape, weights, seed):
        history = Maker(dtype, seed=seed).many(len(weights), *shape)
        same(backend, "forecast", [history, torch.tensor(weights)], lambda _, result: [result])

    check()


def test_forecast_residual(backend):
    @examples(backend)
    @given(dtypes, dtypes, cubes, st.data(), seeds)
    def check(dtype, history_dtype, shape, data, seed):
        n_features, k = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 8))
        rows = data.draw(st.sampled_from([1, n_features]))
        values = data.draw(st.lists(weight, min_size=rows * k, max_size=rows * k))
        weights = torch.tensor(values).view(rows, k) if rows > 1 else torch.tensor(values)
        b, s, d = shape
        gate_shape = data.draw(st.sampled_from([(d,), (1, 1, d), (b, 1, d), (b, s, d), ()]))
        gate_dtype = data.draw(st.sampled_from([dtype, FP32]))
        make = Maker(dtype, seed=seed)
        x, history = make(*shape), make(n_features, k, *shape, dtype=history_dtype)
        n_gates = n_features if gate_shape else 0
        gates = [make(*gate_shape, dtype=gate_dtype) for _ in range(n_gates)]
        slots = list(history.flatten(0, 1))
        args = [x, slots, weights, gates]
        same(backend, "forecast_residual_", args, lambda args, _: [args[0]])
        if gate_shape in ((), (1, 1, d), (b, 1, d)):
            arena = torch.stack([g[:, 0] for g in gates]) if gates else torch.empty(0)
            args = [x, history, weights, arena]
            same(backend, "forecast_residual_packed_", args, lambda args, _: [args[0]])

    check()


def test_commit(backend):
    @examples(backend)
    @given(dtypes, dtypes, shapes, st.integers(1, 8), st.data(), seeds)
    def check(dtype, history_dtype, shape, k, data, seed):
        n_stats = data.draw(st.integers(0, 2))
        n = (k + n_stats) * (k + 1)
        values = data.draw(st.lists(weight, min_size=n, max_size=n))
        transition = torch.tensor(values).view(k + n_stats, k + 1)
        make = Maker(dtype, seed=seed)
        history = [make(*shape, dtype=history_dtype) for _ in range(k)]
        stats = torch.zeros(n_stats) if n_stats else None
        args = [make(*shape), history, transition, stats]
        same(backend, "commit_", args, lambda args, _: args[1])

    check()


DIGEST = """
import hashlib, torch, foca_kernels as fk
from tensors import Maker, bits
digest = hashlib.sha256()
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for n in (1, 5, 15, 16, 17, 31, 33, 100_003):
        make = Maker(dtype)
        x, feature, *history = make.many(5, n)
        stats = torch.zeros(2)
        fk.forecast_calibrate_rotate(x, feature, history[0], torch.tensor([0.3, 0.7]))
        fk.forecast_residual_(x, history, make.small(3), [make(n)])
        fk.commit_(feature, history, make.small(5, 4), stats)
        for t in (x, feature, *history, stats, fk.forecast(history, make.small(3))):
            digest.update(bits(t).numpy().tobytes())
    buffer = make(4_300_008)  # 8 MiB and more are written past the caches, here off alignment
    fk.forecast(make.many(3, 4_300_001), make.small(3), out=buffer[3:-4])
    digest.update(bits(buffer).numpy().tobytes())
print(digest.hexdigest())
"""


def test_thread_counts_agree():
    """Norms included: the order of a sum depends on nothing but its length.

    csrc/tests/test_cpu.cpp holds the kernels of all instruction sets to the same bits.
    """
    found = find_backend("cpp-cpu")
    if isinstance(found, str):
        pytest.skip(found)
    digests = [
        subprocess.check_output(
            [sys.executable, "-c", DIGEST],
            env={
                **os.environ,
                "OMP_NUM_THREADS": threads,
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            text=True,
        ).strip()
        for threads in ("1", "2")
    ]
    assert len(digests[0]) == hashlib.sha256().digest_size * 2
    assert digests[0] == digests[1]
