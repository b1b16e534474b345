"""What only a CUDA device can show: captured graphs, streams, more than one device."""

import oracle
import pytest
import torch
from bad_inputs import valid_call
from tensors import Maker, clones, same_bits

from foca_kernels.registry import FUNCTIONS

SMALL = ("steps", "weights", "transition")


def tensors_of(args):
    for value in args.values():
        yield from (
            t for t in (value if isinstance(value, list) else [value]) if torch.is_tensor(t)
        )


def on_device(args):
    return {k: v.cuda() if k in SMALL else v for k, v in args.items()}


def copy_of(args):
    return {
        k: clones(v) if isinstance(v, list) else v.clone() if torch.is_tensor(v) else v
        for k, v in args.items()
    }


def all_same(a, b):
    return all(map(same_bits, tensors_of(a), tensors_of(b)))


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_captured_graph_sees_new_scalars(cuda_backend, function):
    """Captured once, replayed with other weights: the kernel reads them from the device."""
    args = on_device(valid_call(function, "cuda"))
    scratch = copy_of(args)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        cuda_backend.call(function, *scratch.values())  # compiles, loads modules
    torch.cuda.current_stream().wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    before = copy_of(args)
    with torch.cuda.graph(graph):
        result = cuda_backend.call(function, *args.values())
    assert all_same(args, before), "capturing must not run the kernel"
    for round_number in range(3):
        for name in SMALL:
            if name in args:
                args[name].mul_(0.75)
        want = copy_of(args)
        expected = cuda_backend.call(function, *want.values())
        graph.replay()
        torch.cuda.synchronize()
        assert all_same(args, want), f"replay {round_number}"
        if expected is not None:
            assert same_bits(result, expected)


def test_rotating_graph_walks_the_recursion(cuda_backend):
    """One captured step, replayed, is the method run step by step."""
    make = Maker(torch.float32, "cuda")
    f_k, f_km1, slope = make.many(3, 1000)
    steps = torch.tensor([1.0, 1.0], device="cuda")
    want = [f_km1.double(), f_k.double()]
    for _ in range(4):
        want.append(oracle.calibrate(want[-1], want[-2], slope, 1.0, 1.0).value)
    cuda_backend.call("forecast_calibrate_rotate", *clones([f_k, f_km1, slope]), steps)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda_backend.call("forecast_calibrate_rotate", f_k, f_km1, slope, steps)
    for _ in range(4):
        graph.replay()
    torch.testing.assert_close(f_k.double(), want[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(f_km1.double(), want[-2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_second_stream_is_respected(cuda_backend, function):
    """Work queued on the current stream happens before the operator, and after it."""
    args = on_device(valid_call(function, "cuda"))
    want = copy_of(args)
    expected = cuda_backend.call(function, *want.values())
    late = copy_of(args)
    for t in tensors_of(args):
        t.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # about 10 ms, so that the default stream would be too early
        for t, value in zip(tensors_of(args), tensors_of(late), strict=True):
            t.copy_(value)
        result = cuda_backend.call(function, *args.values())
    stream.synchronize()
    assert all_same(args, want)
    if expected is not None:
        assert same_bits(result, expected)


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_second_device(cuda_backend, function):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    args = valid_call(function, "cuda:1")
    want = copy_of(args)
    with torch.cuda.device(1):
        cuda_backend.call(function, *want.values())
    cuda_backend.call(function, *args.values())  # device 0 is current
    assert all_same(args, want)


def test_host_weights_do_not_synchronise(cuda_backend):
    make = Maker(torch.bfloat16, "cuda")
    x, *history = make.many(7, 2, 3, 64)
    arena, no_gates = make(2, 3, 2, 3, 64), make(0)
    stats = torch.zeros(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        cuda_backend.call("forecast_residual_", x, history, make.small(2, 3), [])
        cuda_backend.call("forecast_residual_packed_", x, arena, make.small(2, 3), no_gates)
        cuda_backend.call("commit_", x, history[:3], make.small(4, 4), stats)
        cuda_backend.call("forecast", history[:3], make.small(3))
        cuda_backend.call("forecast_calibrate_tensor", x, *history[:2], torch.ones(2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
