"""Is every operator right on this device? Against float64, in every way it may be called."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from foca_kernels import reference

Args = dict[str, Any]
SMALL = ("steps", "weights", "transition", "stats")  # float32 whatever the features are


def arguments(function: str, dtype: torch.dtype, device: str) -> Args:
    """A call with odd sizes, gates, mixed shapes in lists, a zero weight on an unset (NaN) slot."""
    shapes = [(2, 33, 129), (2, 64, 256), (1, 7, 5)]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    def small(*values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    lists = {n: [draw(*s) for s in shapes] for n in ("f_k", "f_km1", "d_anchor")}
    single = {n: tensors[1] for n, tensors in lists.items()}
    shape = shapes[0]
    history = [draw(*shape) for _ in range(6)]
    history[4] = torch.full_like(history[4], float("nan"))
    weights = torch.tensor([[1.0, 2.0, 0.375], [1.0, 0.0, -0.5]], device=device)
    transition = small([0, 0, 0, 1], [-0.25, 0, 0, 0.25], [-0.75, -3, -0.375, 0.75], [1, 0, -1, 0])
    return {
        "forecast_calibrate": {**single, "h": 0.5, "h_prev": 0.75},
        "forecast_calibrate_tensor": {**single, "steps": small(0.5, 0.75)},
        "forecast_calibrate_list": {**lists, "steps": small(0.5, 0.75)},
        "forecast_calibrate_rotate": {**single, "steps": small(0.5, 0.75)},
        "forecast": {"history": history[:3], "weights": weights[0].clone()},
        "forecast_out": {
            "history": history[3:], "weights": weights[1].clone(), "out": draw(*shape),
        },
        "forecast_residual_": {
            "x": draw(*shape), "history": history, "weights": weights,
            "gates": [draw(2, 1, 129) for _ in range(2)],
        },
        "forecast_residual_packed_": {
            "x": draw(*shape), "history": torch.stack(history).view(2, 3, *shape),
            "weights": weights, "gates": draw(2, 2, 129),
        },
        "commit_": {
            "feature": draw(*shape), "history": history[:3], "transition": transition,
            "stats": small(0),
        },
        "commit_list_": {
            "features": [draw(*s) for s in shapes],
            "history": [draw(*s) for s in shapes for _ in range(3)],
            "transition": transition, "stats": small([0], [0], [0]),
        },
    }[function]  # fmt: skip


def _map(args: Args, change: Callable[[str, Tensor], Tensor]) -> Args:
    def one(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [change(name, t) for t in value]
        return change(name, value) if isinstance(value, Tensor) else value

    return {name: one(name, value) for name, value in args.items()}


def _clone(args: Args) -> Args:
    return _map(args, lambda _, t: t.clone())


def _tensors(args: Args) -> list[Tensor]:
    values = [v if isinstance(v, list) else [v] for v in args.values()]
    return [t for value in values for t in value if isinstance(t, Tensor)]


def invoke(function: Callable[..., Any], args: Args) -> list[Tensor]:
    """Calls; returns every tensor the call may have written, result included."""
    values = dict(args)
    keywords = {"out": values.pop("out")} if "out" in values else {}
    result = function(*values.values(), **keywords)
    return [*_tensors(args), *([] if result is None else [result])]


def expected(name: str, args: Args) -> list[Tensor]:
    """The same call in float64, by the reference."""
    wide = _map(args, lambda n, t: t.clone() if n in SMALL else t.double())
    return invoke(getattr(reference, name), wide)


def error_in_ulps(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest error, in units of one rounding: half an ulp of the dtype plus some float32 sums."""
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        if b.numel() == 0:
            continue
        eps = torch.finfo(a.dtype).eps
        a, b = a.double().cpu(), b.double().cpu()
        if not torch.equal(a.isnan(), b.isnan()):
            return float("inf")
        b = b.nan_to_num(0.0)
        unit = eps / 2 * b.abs() + 2e-6 * b.abs().mean().clamp_min(1e-3)
        worst = max(worst, float(((a.nan_to_num(0.0) - b).abs() / unit).max()))
    return worst


def _graph(function: Callable[..., Any], args: Args) -> list[Tensor]:
    """Captured with scalars of zero, replayed with the true ones: a frozen scalar would show."""
    live = _clone(args)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        invoke(function, _clone(args))
    torch.cuda.current_stream().wait_stream(stream)
    for name in ("steps", "weights", "transition"):
        if name in live:
            live[name].fill_(1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = invoke(function, live)
    for t, value in zip(_tensors(live), _tensors(args), strict=True):
        t.copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    return results


def _second_stream(function: Callable[..., Any], args: Args) -> list[Tensor]:
    """The inputs arrive late on a stream of their own; the operator must wait for them there."""
    live = _map(args, lambda _, t: torch.zeros_like(t))
    for name in ("steps", "weights", "transition"):
        if name in live:
            live[name].fill_(1.0)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(4_000_000)
        for t, value in zip(_tensors(live), _tensors(args), strict=True):
            t.copy_(value)
        results = invoke(function, live)
    stream.synchronize()
    return results


def _second_thread(function: Callable[..., Any], args: Args) -> list[Tensor]:
    """Called in another thread, while this one calls it, too, on tensors of its own."""
    results: list[list[Tensor]] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            with torch.inference_mode():
                for _ in range(20):
                    results[:] = [invoke(function, _clone(args))]
        except Exception as error:  # an exception in a thread would otherwise be lost
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(20):
        invoke(function, _clone(args))
    thread.join()
    if failed:
        raise failed[0]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return results[0]


def _compiled(function: Callable[..., Any], args: Args) -> list[Tensor]:
    """Inside a compiled graph, called a second time with other values of the scalars."""
    torch._dynamo.reset()
    program = torch.compile(function, fullgraph=True)
    first = _clone(args)
    for name in ("steps", "weights", "transition"):
        if name in first:
            first[name].fill_(1.0)
    invoke(program, first)
    return invoke(program, _clone(args))


def check(
    name: str,
    function: Callable[..., Any],
    dtype: torch.dtype,
    device: str,
    compiled: bool = False,
) -> Iterator[tuple[str, float]]:
    """Yields (mode, error in units of one rounding) for every way of calling; 1 is right.

    Args:
        compiled: also inside `torch.compile`, for a function that is a registered operator.
    """
    args = arguments(name, dtype, device)
    want = expected(name, args)
    modes = {"eager": lambda f, a: invoke(f, _clone(a)), "second thread": _second_thread}
    if compiled:
        modes["compiled"] = _compiled
    if device != "cpu":
        modes |= {"graph": _graph, "second stream": _second_stream}
    for mode, run in modes.items():
        yield mode, error_in_ulps(run(function, args), want)
