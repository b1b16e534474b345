"""The operators inside PyTorch: opcheck, torch.compile, threads, determinism."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from backends import overload
from bad_inputs import valid_call
from tensors import Maker, clones, same_bits
from torch._dynamo.testing import CompileCounterWithBackend

import foca_kernels as fk
from foca_kernels.registry import FUNCTIONS

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_opcheck(name, device):
    args = valid_call(FUNCTIONS[name], device)
    out = {"out": args.pop("out")} if "out" in args else {}
    torch.library.opcheck(overload(name), tuple(args.values()), out)


@pytest.fixture(params=["aot_eager", "inductor"])
def compiler(request):
    torch._dynamo.reset()
    yield CompileCounterWithBackend(request.param)
    torch._dynamo.reset()


def one_step(x, f_k, f_km1, history, arena, steps, weights, transition, stats):
    """Every operator that a loop of steps may call, on buffers that live from step to step."""
    fk.forecast_calibrate_rotate(f_k, f_km1, x, steps)
    fk.forecast_calibrate_tensor(x, f_km1, f_k, steps)
    fk.forecast_calibrate_list([f_k], [f_km1], [x], steps)
    y = fk.forecast(history, weights) + 1
    fk.commit_(y, history, transition, stats)
    fk.commit_list_([y], history, transition, stats.view(1, -1))
    z = x * 2
    fk.forecast_residual_(z, history, weights, [x[0, 0].clone()])
    fk.forecast_residual_packed_(z, arena, weights)
    fk.forecast(history, weights, out=y)
    return y + z


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("table_on_device", [False, True])
def test_compiled_loop_with_changing_weights_compiles_once(compiler, device, table_on_device):
    make = Maker(torch.float32, device)
    x, f_k, f_km1, *history = make.many(6, 2, 3, 8)
    arena, stats = make(1, 3, 2, 3, 8), torch.zeros(1, device=device)
    compiled_args = [x, f_k, f_km1, history, arena]
    eager_args = [clones(a) if isinstance(a, list) else a.clone() for a in compiled_args]
    n_steps = 12  # more than torch._dynamo.config.recompile_limit
    steps = make.small(n_steps, 2).abs() * 0.1 + 0.1
    weights, transitions = make.small(n_steps, 3) * 0.5, make.small(n_steps, 4, 4) * 0.3
    tables = [t.to(device) if table_on_device else t for t in (steps, weights, transitions)]
    compiled = torch.compile(one_step, fullgraph=True, backend=compiler)
    for i in range(n_steps):
        small = [table[i] for table in tables]
        other = torch.zeros_like(stats)
        want = one_step(*eager_args, *small, other)
        got = compiled(*compiled_args, *small, stats)
        assert torch.equal(got, want), f"step {i}"
        assert same_bits(stats, other)
        for a, b in zip(compiled_args[3], eager_args[3], strict=True):
            assert same_bits(a, b)
    assert compiler.frame_count == 1


MISPLACED = pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="pytorch issue 198068 (docs/ops.md, compiled code)"
)


@pytest.mark.parametrize(
    ("slot", "offset", "dynamic"),
    [
        pytest.param(lambda arena: arena[1:2], 0, None, id="slice"),
        pytest.param(lambda arena: arena[1], 1, False, id="select-static"),
        pytest.param(lambda arena: arena[1], 0, None, id="select", marks=MISPLACED),
        pytest.param(lambda arena: arena[1:2], 1, None, id="slice-of-view", marks=MISPLACED),
    ],
)
def test_a_compiled_write_to_a_slot_at_a_second_size(slot, offset, dynamic):
    def skip(arena, value):
        torch.ops.foca.forecast_residual_(slot(arena), [value], torch.ones(1), [])

    torch._dynamo.reset()
    compiled = torch.compile(skip, fullgraph=True, dynamic=dynamic)
    for n in (4, 8):
        got, want = torch.zeros(4, 3, n), torch.zeros(4, 3, n)
        value = torch.ones_like(slot(want[offset:]))
        skip(want[offset:], value)
        compiled(got[offset:], value)
        assert torch.equal(got, want), n


def test_compiled_refusals_name_the_argument(compiler):
    compiled = torch.compile(fk.forecast, fullgraph=True, backend=compiler)
    good, small = torch.ones(4), torch.ones(2)
    for bad, text in (
        (torch.ones(5), "argument 'history[1]': expected shape [4] like history[0], got [5]"),
        (torch.ones(4).half(), "argument 'history[1]': expected dtype float32 like history[0]"),
        (torch.ones(4, requires_grad=True), "argument 'history[1]': expected no gradient tracking"),
    ):
        with pytest.raises(Exception, match="foca::forecast") as error:
            compiled([good, bad], small)
        assert text in str(error.value)


def test_export_keeps_the_operators():
    class Skip(torch.nn.Module):
        def forward(self, x, history, weights):
            return fk.forecast_residual_(x.clone(), [history, history], weights)

    args = (torch.ones(3, 4), torch.ones(3, 4), torch.tensor([1.0, 2.0]))
    program = torch.export.export(Skip(), args)
    assert any("forecast_residual_" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(*args), Skip()(*args))


def test_meta_tensors_give_shapes():
    history = [torch.empty(3, 4, device="meta", dtype=torch.bfloat16)] * 2
    result = fk.forecast(history, torch.ones(2))
    assert result.device.type == "meta"
    assert (result.shape, result.dtype) == ((3, 4), torch.bfloat16)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_writes_are_counted(name, device):
    """So that autograd refuses to go backwards through what was computed from an older value."""
    op, args = overload(name), valid_call(FUNCTIONS[name], device)
    written = [a.name for a in op._schema.arguments if a.alias_info and a.alias_info.is_write]
    versions = {key: [t._version for t in _tensors(value)] for key, value in args.items()}
    out = {"out": args["out"]} if "out" in args else {}
    op(*(value for key, value in args.items() if key != "out"), **out)
    for key, value in args.items():
        for tensor, before in zip(_tensors(value), versions[key], strict=True):
            assert (tensor._version > before) == (key in written), key


def _tensors(value):
    given = value if isinstance(value, (list, tuple)) else [value]
    return [tensor for tensor in given if isinstance(tensor, torch.Tensor)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_backward_pass_through_an_overwritten_value_is_refused(device):
    weight = torch.ones(4, device=device, requires_grad=True)
    x = torch.full((4,), 3.0, device=device)
    loss = (weight * x).sum()
    with torch.no_grad():
        fk.forecast_residual_(x, [torch.ones_like(x)], torch.ones(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_tensors_of_inference_mode_are_written_outside_of_it(backend, function):
    """Also beside others: no write fails after another was done."""
    want = valid_call(function, backend.device)
    with torch.inference_mode():
        args = valid_call(function, backend.device)
    for value in args.values():
        if isinstance(value, list):
            value[0] = value[0].clone()  # none of inference mode
    results = [backend.call(function, *a.values()) for a in (args, want)]
    assert results[0] is results[1] or same_bits(*results)
    for given, expected in zip(args.values(), want.values(), strict=True):
        assert all(map(same_bits, _tensors(given), _tensors(expected)))


def test_norms_of_an_empty_feature_are_written_outside_of_inference_mode(backend):
    feature = torch.empty(0, device=backend.device)
    with torch.inference_mode():
        stats = torch.ones(1, device=backend.device)
    backend.call("commit_", feature, [feature.clone()], torch.ones(2, 2), stats)
    assert stats.item() == 0


@pytest.mark.parametrize("device", DEVICES)
def test_empty_arguments_are_on_the_device_too(device):
    """An empty tensor elsewhere would send the call to another device's kernels."""
    x, one = torch.ones(4, device=device), torch.ones(1)
    empty = torch.empty(0, device="meta")
    with pytest.raises(RuntimeError, match=r"argument 'gates': expected device .*, got meta"):
        fk.forecast_residual_packed_(x, x.view(1, 1, 4), one, empty)
    with pytest.raises(RuntimeError, match=r"argument 'stats': expected device .*, got meta"):
        fk.commit_(x, [x.clone()], torch.tensor([[0.0, 1.0]]), empty)


def test_wrappers_return_what_they_document():
    x, history, weights = torch.ones(3), [torch.ones(3)], torch.ones(1)
    assert fk.forecast(history, weights, out=x) is x
    assert fk.forecast_residual_(x, history, weights) is x
    assert fk.forecast_residual_packed_(x, torch.ones(1, 1, 3), weights) is x
    assert x.tolist() == [3.0] * 3


def test_many_threads(backend):
    """Calls from several threads at once do not disturb each other."""
    if backend.interpreted:
        pytest.skip("Triton's interpreter is not made for threads")
    make = Maker(torch.bfloat16, backend.device)
    history, weights = make.many(3, 40_001), [make.small(3) for _ in range(8)]
    transition = make.small(5, 4)

    def work(i):
        own, stats = clones(history), torch.zeros(2, device=backend.device)
        for _ in range(5):
            result = backend.call("forecast", history, weights[i])
            backend.call("commit_", result, own, transition * 0.3, stats)
            backend.call("forecast_residual_", result, own, weights[i], [])
        if backend.device == "cuda":
            torch.cuda.synchronize()
        return [result, *own, stats]

    alone = [work(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(8)))
    for a, b in zip(alone, together, strict=True):
        assert all(map(same_bits, a, b))


def test_norms_are_the_same_from_run_to_run(backend):
    n = 3_001 if backend.interpreted else 300_007
    make = Maker(torch.float32, backend.device)
    feature, history, transition = make(n), make.many(2, n), make.small(6, 3)
    seen = []
    threads = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3, 1, 2):
            torch.set_num_threads(n_threads)
            stats = torch.zeros(4, device=backend.device)
            backend.call("commit_", feature, clones(history), transition, stats)
            seen.append(stats)
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(stats, seen[0]) for stats in seen)


def test_calls_do_not_allocate_on_the_device(backend):
    """Beyond the result, and Triton's scratch for norms, no memory is asked for."""
    if backend.device != "cuda" or backend.is_reference:
        pytest.skip("needs the CUDA allocator's books")
    make = Maker(torch.bfloat16, backend.device)
    x, *history = make.many(4, 1 << 20)
    weights, transition = make.small(3, on_device=True), make.small(3, 4, on_device=True)
    for _ in range(2):  # the first round compiles
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        backend.call("forecast_residual_", x, history, weights, [])
        backend.call("commit_", x, history, transition, None)
        backend.call("forecast_out", history, weights, x)
        after = torch.cuda.memory_stats()["allocation.all.allocated"]
    assert after == before
