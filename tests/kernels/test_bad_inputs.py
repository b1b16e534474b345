"""Every refusal, on every backend: one exact text, and not a byte written."""

import pytest
import torch
from backends import Backend, overload
from bad_inputs import CASES, bad_call, valid_call
from tensors import same_bits

from foca_kernels import ops
from foca_kernels.registry import FUNCTIONS

OP_NAMES = {function: name.partition(".")[0] for name, function in FUNCTIONS.items()}


def tensors_of(args):
    for value in args.values():
        yield from (
            t for t in (value if isinstance(value, list) else [value]) if torch.is_tensor(t)
        )


def snapshot(args):
    """The memory behind every argument."""
    seen = [t.detach() for t in tensors_of(args) if t.device.type != "meta" and not t.is_sparse]
    plain = [torch._neg_view(t) if t.is_neg() else t for t in seen]
    return [torch.as_strided(t, (t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
            for t in plain]  # fmt: skip


def message_of(case, device):
    small_device = "cpu" if device == "cpu" else f"cpu or {device}"
    expected = case.expected.format(device=device, small_device=small_device)
    return (
        f"foca::{OP_NAMES[case.function]}: argument '{case.argument}': "
        f"expected {expected}, got {case.got}"
    )


def refuses(call, args, message):
    memory = snapshot(args)
    before = [t.clone() for t in memory]
    with pytest.raises(RuntimeError) as error:
        call()
    assert str(error.value).splitlines()[0] == message
    assert all(map(same_bits, memory, before))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_refusal(backend: Backend, case):
    args = bad_call(case, backend)
    device = str(torch.ones(0, device=backend.device).device)
    refuses(lambda: backend.call(case.function, *args.values()), args, message_of(case, device))


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_the_valid_call_is_valid(backend, function):
    args = valid_call(function, backend.device)
    backend.call(function, *args.values())


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_tracked_tensors_are_welcome_without_grad_mode(backend, function):
    args = valid_call(function, backend.device)
    for t in tensors_of(args):
        t.requires_grad_()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            backend.call(function, *args.values())


def test_float64_is_for_the_reference(backend):
    x = torch.ones(3, dtype=torch.float64, device=backend.device)
    if backend.is_reference:
        assert backend.call("forecast", [x], torch.ones(1)).dtype == torch.float64
        return
    message = "argument 'history[0]': expected dtype bfloat16, float16 or float32, got float64"
    args = {"history": [x], "weights": torch.ones(1)}
    refuses(lambda: backend.call("forecast", *args.values()), args, f"foca::forecast: {message}")


def test_every_other_dtype_is_refused_by_its_name(backend):
    taken = {torch.bfloat16, torch.float16, torch.float32, torch.float64}
    for dtype in {
        value for value in vars(torch).values() if isinstance(value, torch.dtype)
    } - taken:
        try:
            x = torch.empty(2, dtype=dtype, device=backend.device)
        except (RuntimeError, NotImplementedError):  # quantised: no plain tensor has it
            continue
        got = str(dtype).removeprefix("torch.")
        text = f"'history[0]': expected dtype bfloat16, float16 or float32, got {got}"
        with pytest.raises(RuntimeError) as error:
            backend.call("forecast", [x], torch.ones(1))
        assert str(error.value).splitlines()[0] == f"foca::forecast: argument {text}"


def test_small_tensors_on_the_device_are_not_checked_for_values(backend):
    if backend.device == "cpu":
        pytest.skip("on the CPU the small tensors are host tensors")
    x = torch.ones(3, device=backend.device)
    weights = torch.tensor([float("nan")], device=backend.device)
    assert backend.call("forecast", [x], weights).isnan().all()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_negative_views_are_read_as_their_values(name, mode):
    """Of every argument that is not written, alone."""
    function = FUNCTIONS[name]
    backend = Backend("", "cpu", {function: overload(name)})
    written = [a.name for a in overload(name)._schema.arguments if a.alias_info]
    with mode():
        for argument, given in valid_call(function, "cpu").items():
            if argument in written or isinstance(given, float):
                continue
            args, want = valid_call(function, "cpu"), valid_call(function, "cpu")
            many = isinstance(given, list)
            view = [torch._neg_view(-t) for t in given] if many else torch._neg_view(-given)
            results = [backend.call(function, *a.values()) for a in (args | {argument: view}, want)]
            assert results[0] is results[1] or same_bits(*results)
            for pair in zip(tensors_of(args), tensors_of(want), strict=True):
                assert same_bits(*pair), argument


def test_empty_tensors_never_overlap(backend):
    x = torch.empty(0, 3, device=backend.device)
    backend.call("forecast_residual_", x, [x, x], torch.ones(2), [])
    backend.call("commit_", x, [x, x], torch.eye(2, 3), None)
    backend.call("forecast_calibrate_rotate", x, x, x, torch.ones(2))
    backend.call("forecast_out", [x], torch.ones(1), x)


def test_neighbours_do_not_overlap(backend):
    """Tensors that touch but share no byte."""
    buffer = torch.arange(12.0, device=backend.device)
    history = [buffer[:4], buffer[4:8]]
    backend.call("forecast_out", history, torch.ones(2), buffer[8:])
    assert buffer[8:].tolist() == [4.0, 6.0, 8.0, 10.0]


@pytest.mark.parametrize("case", CASES[::7], ids=lambda case: case.id)
def test_wrappers_pass_refusals_on(case):
    """The public functions raise what the operators raise."""
    wrappers = {"forecast_out": "forecast"}
    args = bad_call(case, Backend("", "cpu", {}))
    function = getattr(ops, wrappers.get(case.function, case.function))
    refuses(lambda: function(*args.values()), args, message_of(case, "cpu"))
