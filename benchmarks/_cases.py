"""The measured cases of single features: inputs, bytes, and providers that compute the same.

`_cases_lists.py` has those of many features at once.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import _plain as plain
import torch
from _measure import Call

from foca_kernels import backend_report, bytes_moved
from foca_kernels.registry import FUNCTIONS

Inputs = dict[str, Any]
Provider = Callable[[Inputs], Call]
BF16 = torch.bfloat16


@dataclass
class Case:
    """One operator on one size. ``inputs`` makes a fresh set; a provider makes a call of a set.

    Attributes:
        dtype: of the features, by name.
        shape: of one feature; with several features, `features` of them.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    inputs: Callable[[], Inputs]
    nbytes: Callable[[Inputs], int]
    providers: dict[str, Provider] = field(default_factory=dict)
    features: int = 1

    def leave_out(self, *words: str) -> None:
        """Drops the providers whose names begin with one of the words."""
        self.providers = {n: p for n, p in self.providers.items() if not n.startswith(words)}

    @property
    def elements(self) -> int:
        """Elements of one slot of all features."""
        return self.features * math.prod(self.shape)


def kernel_providers(device: str) -> dict[str, dict[str, Callable[..., Any]]]:
    """By provider, the function of every overload on this device."""
    kind = torch.device(device).type
    serving = backend_report()[kind.upper()]["backend"]
    name = {"cpp": f"{kind}-cpp"}.get(serving, serving)
    found = {name: {f: _overload(n) for n, f in FUNCTIONS.items()}}
    if kind == "cuda" and serving != "triton":
        try:
            module = importlib.import_module("foca_kernels.triton_ops")
        except ImportError:
            return found
        found["triton"] = {f: getattr(module, f) for f in FUNCTIONS.values()}
    return found


def _overload(name: str) -> Any:
    op, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.foca, op), overload or "default")


def kernels_of(function: str, device: str) -> dict[str, Callable[..., Any]]:
    """By provider, one function on this device."""
    return {name: fs[function] for name, fs in kernel_providers(device).items()}


def kernel_calls(function: str, device: str) -> dict[str, Provider]:
    def bind(f: Callable[..., Any]) -> Provider:
        if function == "forecast_out":
            return lambda i: lambda: f(i["history"], i["weights"], out=i["out"])
        return lambda i: lambda: f(*i.values())

    return {name: bind(f) for name, f in kernels_of(function, device).items()}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def float32_providers(new: Callable[..., Any], into: Callable[..., None]) -> dict[str, Provider]:
    """The same in float32 with one rounding: eager, and compiled in both forms.

    Args:
        new: of the inputs but the last ones, which it does not know; returns new tensors.
        into: of all inputs; writes where the kernel writes.
    """
    n = len(inspect.signature(new).parameters)
    fast_new, fast_into = compiled(new), compiled(into)
    return {
        "eager-float32": lambda i: lambda: new(*list(i.values())[:n]),
        "compile": lambda i: lambda: fast_new(*list(i.values())[:n]),
        "compile-in-place": lambda i: lambda: fast_into(*i.values()),
    }


class Maker:
    """Tensors like those of a model: unit scale, on one device and of one dtype."""

    def __init__(self, device: str, dtype: torch.dtype = BF16) -> None:
        self.device, self.dtype = device, dtype

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def many(self, n: int, shape: Sequence[int]) -> list[torch.Tensor]:
        return [self(*shape) for _ in range(n)]

    def small(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


WEIGHTS = (1.0, 2.0, 0.375)  # FoCa two steps past the anchor, feedback 1/2
# FoCa's commit after a gap of 3, and the second difference as a reduced row.
TRANSITION = (
    (0.0, 0.0, 0.0, 1.0),
    (-1 / 3, 0.0, 0.0, 1 / 3),
    (-2 / 3, -2.0, -0.375, 2 / 3),
)
STATS_ROWS = ((-1 / 9, -1 / 3, 0.0, 1 / 9), (-2 / 3, -2.0, -0.375, 2 / 3))


def new_forecast_case(shape: Sequence[int], device: str, dtype: torch.dtype = BF16) -> Case:
    """The forecast as a new tensor."""
    make = Maker(device, dtype)
    return Case(
        "forecast K=3, new tensor",
        make.name,
        shape,
        lambda: {"history": make.many(3, shape), "weights": make.small(WEIGHTS)},
        lambda i: bytes_moved.forecast(i["history"], i["weights"]),
        {
            **kernel_calls("forecast", device),
            "eager": lambda i: lambda: plain.chain_forecast(i["history"], WEIGHTS),
        },
    )


def forecast_case(shape: Sequence[int], device: str, dtype: torch.dtype = BF16) -> Case:
    make = Maker(device, dtype)

    return Case(
        "forecast K=3",
        make.name,
        shape,
        lambda: {
            "history": make.many(3, shape),
            "weights": make.small(WEIGHTS),
            "out": make(*shape),
        },
        lambda i: bytes_moved.forecast(i["history"], i["weights"]),
        {
            **kernel_calls("forecast_out", device),
            "eager": lambda i: lambda: plain.chain_forecast(i["history"], WEIGHTS),
            "eager-in-place": lambda i: (
                lambda: plain.chain_forecast_into(i["history"], WEIGHTS, i["out"])
            ),
            **float32_providers(plain.float32_forecast, plain.float32_forecast_into),
        },
    )


def calibrate_case(
    shape: Sequence[int], device: str, dtype: torch.dtype = BF16, form: str = "tensor"
) -> Case:
    """The paper's step. `form`: `tensor` (in place), `rotate`, or `scalars` (Python numbers)."""
    make = Maker(device, dtype)
    function = {"scalars": "forecast_calibrate"}.get(form, f"forecast_calibrate_{form}")
    steps = {"h": 1.0, "h_prev": 1.0} if form == "scalars" else {"steps": make.small([1.0, 1.0])}

    def tensors(i: Inputs) -> list[torch.Tensor]:
        return [i["f_k"], i["f_km1"], i["d_anchor"]]

    case = Case(
        "forecast_calibrate" + ("" if form == "tensor" else f" {form}"),
        make.name,
        shape,
        lambda: {"f_k": make(*shape), "f_km1": make(*shape), "d_anchor": make(*shape), **steps},
        lambda i: bytes_moved.forecast_calibrate(i["f_k"], rotate=form == "rotate"),
        kernel_calls(function, device),
    )
    if form == "tensor":
        case.providers |= {
            "eager": lambda i: lambda: plain.chain_calibrate(*tensors(i), 1.0, 1.0),
            **float32_providers(plain.float32_calibrate, plain.float32_calibrate_into),
        }
    return case


def commit_case(n_stats: int, shape: Sequence[int], device: str, dtype: torch.dtype = BF16) -> Case:
    make = Maker(device, dtype)
    rows = [*TRANSITION, *STATS_ROWS[:n_stats]]

    return Case(
        f"commit_ K=3 R={n_stats}",
        make.name,
        shape,
        lambda: {
            "feature": make(*shape),
            "history": make.many(3, shape),
            "transition": make.small(rows),
            "stats": torch.zeros(n_stats, device=device) if n_stats else None,
        },
        lambda i: bytes_moved.commit_(i["feature"], i["history"], i["transition"]),
        {
            **kernel_calls("commit_", device),
            "eager": lambda i: lambda: plain.chain_commit(i["feature"], i["history"], rows),
            **float32_providers(plain.float32_commit, plain.float32_commit_into),
        },
    )
