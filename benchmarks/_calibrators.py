"""Forecasts and updates of cache-dit's calibrators beside ours: the same job on the same features.

cache-dit's FoCa calibrator keeps four tensors and its TaylorSeer two; both are plain PyTorch. Their
states are filled by their own `update`, and a forecast is their own `approximate`. A forecast is
timed over a whole interval: N - 1 of them, at distances 1 to N - 1, since beyond a distance of 3
cache-dit's FoCa takes three more passes. One feature is what a cache of the whole stack has; with
`FEATURES` of them a skipped step is what a cache of every module has: each is forecast, gated and
added to the stream, by cache-dit's calibrators one after another, by ours in one launch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from _cases import Case, Inputs, Maker
from _measure import Call

from foca_dit.schemes import FoCa, Scheme, TaylorSeer
from foca_kernels import bytes_moved

PEER = "cache_dit.caching.cache_contexts.calibrators"
SCHEMES: dict[str, Scheme] = {"FoCa": FoCa(feedback=1.0), "TaylorSeer-1": TaylorSeer(order=1)}
GAP = 5
FEATURES, WIDTH = 8, 512


def state_of(name: str) -> Any:
    """A new state of cache-dit's calibrator, or None where cache-dit is not installed."""
    module, cls = {
        "FoCa": ("foca", "FoCaState"),
        "TaylorSeer-1": ("taylorseer", "TaylorSeerState"),
    }[name]
    try:
        return getattr(importlib.import_module(f"{PEER}.{module}"), cls)()
    except ImportError:
        return None


def filled(name: str, features: list[torch.Tensor]) -> Any:
    """The state after full steps 0, 1, .. and one that came `GAP` steps later."""
    state = state_of(name)
    for step, feature in enumerate(features):
        state.current_step = step if step < len(features) - 1 else step - 1 + GAP
        state.update(feature)
    return state


def weights_of(name: str, interval: int) -> list[list[float]]:
    """Our weights at distances 1 to N - 1, after the same full steps."""
    scheme, anchors = SCHEMES[name], (0, 1, 1 + GAP)
    times = [float(t) for t in range(2 + GAP + interval)]
    return [
        [float(w) for w in scheme.weights(times, anchors, anchors[-1] + j)]
        for j in range(1, interval)
    ]


def cases(elements: int, dtype: torch.dtype) -> Iterator[Case]:
    """All comparisons on one size."""
    for interval in (5, 8):
        yield forecast_case("FoCa", elements, dtype, interval, add=False)
    yield forecast_case("FoCa", elements, dtype, 5, add=True)
    yield forecast_case("TaylorSeer-1", elements, dtype, 5, add=False)
    yield forecast_case("TaylorSeer-1", elements, dtype, 5, add=True)
    yield modules_case("FoCa", elements, dtype, 5)
    yield update_case(elements, dtype)


def forecast_case(name: str, elements: int, dtype: torch.dtype, interval: int, add: bool) -> Case:
    """`add`: the forecast is added to the stream, which is what both do with it in a model."""
    make = Maker("cpu", dtype)
    shape = (1, elements)
    size = SCHEMES[name].history_size
    weights = [make.small(row) for row in weights_of(name, interval)]

    def ours(i: Inputs) -> Call:
        history, x = i["history"], i["x"]
        if add:
            return lambda: [torch.ops.foca.forecast_residual_(x, history, w, []) for w in weights]
        return lambda: [torch.ops.foca.forecast.out(history, w, out=x) for w in weights]

    def ours_new(i: Inputs) -> Call:
        def run() -> None:
            for w in weights:
                torch.ops.foca.forecast(i["history"], w)

        return run

    def theirs(i: Inputs) -> Call:
        state = filled(name, [*i["history"][:2], i["x"]])
        anchor, x = state.current_step, i["x"]
        kept = {k: v for k, v in vars(state).items() if k.startswith("F_")}

        def run() -> None:
            vars(state).update(kept)  # FoCa's window rolls over its own forecasts
            for j in range(1, interval):
                state.current_step = anchor + j
                value = state.approximate()
                if add:
                    value + x

        return run

    what = "forecast and add" if add else "forecast"
    case = Case(
        f"{what}, {name}, N={interval}",
        make.name,
        shape,
        lambda: {"history": make.many(size, shape), "x": make(*shape)},
        lambda i: (
            sum(bytes_moved.forecast(i["history"], w) for w in weights)
            + add * len(weights) * i["x"].nbytes
        ),
        {"cpu-cpp": ours},
    )
    if not add:
        case.providers["cpu-cpp, new tensor"] = ours_new
    elif dtype == torch.float32:
        case.providers["cpu-cpp, bfloat16 history"] = lambda i: ours(
            {"x": i["x"], "history": [t.bfloat16() for t in i["history"]]}
        )
    if state_of(name) is not None:
        case.providers[f"cache-dit {name}"] = theirs
    return case


def modules_case(name: str, elements: int, dtype: torch.dtype, interval: int) -> Case:
    """Several features of `elements` each, gated per channel and added to one stream."""
    make = Maker("cpu", dtype)
    shape = (1, elements // WIDTH, WIDTH)
    size = SCHEMES[name].history_size
    weights = [make.small([row] * FEATURES) for row in weights_of(name, interval)]

    def ours(i: Inputs) -> Call:
        x, history, gates = i["x"], i["history"], i["gates"]
        return lambda: [torch.ops.foca.forecast_residual_(x, history, w, gates) for w in weights]

    def theirs(i: Inputs) -> Call:
        x, history, gates = i["x"], i["history"], i["gates"]
        states = [filled(name, [*history[n : n + 2], x]) for n in range(0, FEATURES * size, size)]
        anchor = states[0].current_step
        kept = [{k: v for k, v in vars(s).items() if k.startswith("F_")} for s in states]

        def run() -> None:
            for state, values in zip(states, kept, strict=True):
                vars(state).update(values)
            for j in range(1, interval):
                stream = x
                for state, gate in zip(states, gates, strict=True):
                    state.current_step = anchor + j
                    stream = stream + gate * state.approximate()

        return run

    case = Case(
        f"{FEATURES} features: forecast, gate and add, {name}, N={interval}",
        make.name,
        shape,
        lambda: {
            "x": make(*shape),
            "history": make.many(FEATURES * size, shape),
            "gates": make.many(FEATURES, (1, 1, WIDTH)),
        },
        lambda i: sum(
            bytes_moved.forecast_residual_(i["x"], i["history"], w, i["gates"]) for w in weights
        ),
        {"cpu-cpp": ours},
    )
    if dtype == torch.float32:
        case.providers["cpu-cpp, bfloat16 history"] = lambda i: ours(
            {**i, "history": [t.bfloat16() for t in i["history"]]}
        )
    if state_of(name) is not None:
        case.providers[f"cache-dit {name}"] = theirs
    return case


def update_case(elements: int, dtype: torch.dtype) -> Case:
    """A full step's part. cache-dit's FoCa keeps copies; ours makes slope and innovation, too."""
    make = Maker("cpu", dtype)
    shape = (1, elements)
    times = [float(t) for t in range(2 + GAP)]
    transition = make.small(SCHEMES["FoCa"].transition(times, (0, 1, 1 + GAP)).tolist())

    def theirs(name: str) -> Any:
        def bind(i: Inputs) -> Call:
            state = filled(name, i["history"])
            return lambda: state.update(i["feature"])

        return bind

    case = Case(
        "commit, FoCa",
        make.name,
        shape,
        lambda: {"feature": make(*shape), "history": make.many(3, shape)},
        lambda i: bytes_moved.commit_(i["feature"], i["history"], transition),
        {
            "cpu-cpp": lambda i: (
                lambda: torch.ops.foca.commit_(i["feature"], i["history"], transition, None)
            )
        },
    )
    for name in SCHEMES:
        if state_of(name) is not None:
            case.providers[f"cache-dit {name}"] = theirs(name)
    return case
