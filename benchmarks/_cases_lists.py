"""The measured cases of many features at once, and what `torch._foreach` makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import _plain as plain
import torch
from _cases import (
    BF16,
    STATS_ROWS,
    TRANSITION,
    WEIGHTS,
    Case,
    Inputs,
    Maker,
    compiled,
    float32_providers,
    kernel_calls,
    kernels_of,
)
from _measure import Call
from torch import Tensor

from foca_kernels import bytes_moved


def _foreach_forecasts(history: Sequence[Tensor]) -> list[Tensor]:
    """The forecasts of all features: one call per slot instead of one per slot and feature."""
    k = len(WEIGHTS)
    total = torch._foreach_mul(list(history[0::k]), WEIGHTS[0])
    for p in range(1, k):
        torch._foreach_add_(total, list(history[p::k]), alpha=WEIGHTS[p])
    return list(total)


def foreach_residual(x: Tensor, history: Sequence[Tensor], gates: Sequence[Tensor]) -> None:
    for gate, feature in zip(gates, _foreach_forecasts(history), strict=True):
        x.addcmul_(gate, feature)


def foreach_commit(features: list[Tensor], history: list[Tensor], rows: Sequence) -> None:
    k = len(TRANSITION)
    columns = [*(history[q::k] for q in range(k)), features]
    new = []
    for weights in rows[:k]:
        total = torch._foreach_mul(columns[0], weights[0])
        for column, weight in zip(columns[1:], weights[1:], strict=True):
            torch._foreach_add_(total, column, alpha=weight)
        new.append(total)
    for p, total in enumerate(new):
        torch._foreach_copy_(columns[p], total)


def calibrate_list_case(
    n: int, shape: Sequence[int], device: str, dtype: torch.dtype = BF16
) -> Case:
    make = Maker(device, dtype)

    def lists(i: Inputs) -> list[list[Tensor]]:
        return [i["f_k"], i["f_km1"], i["d_anchor"]]

    return Case(
        f"forecast_calibrate list n={n}",
        make.name,
        shape,
        lambda: {
            "f_k": make.many(n, shape),
            "f_km1": make.many(n, shape),
            "d_anchor": make.many(n, shape),
            "steps": make.small([1.0, 1.0]),
        },
        lambda i: sum(map(bytes_moved.forecast_calibrate, i["f_k"])),
        {
            **kernel_calls("forecast_calibrate_list", device),
            "foreach": lambda i: lambda: plain.foreach_calibrate(*lists(i), 1.0, 1.0),
        },
        features=n,
    )


def residual_case(
    n_features: int,
    shape: Sequence[int],
    device: str,
    dtype: torch.dtype = BF16,
    rivals: bool = True,
) -> Case:
    """The collapsed skip. `rivals`: with those that take long for many features."""
    make = Maker(device, dtype)
    case = Case(
        f"forecast_residual_ L={n_features} K=3",
        make.name,
        shape,
        lambda: {
            "x": make(*shape),
            "history": make.many(3 * n_features, shape),
            "weights": make.small(WEIGHTS),
            "gates": [1e-3 * g for g in make.many(n_features, (shape[0], 1, shape[2]))],
        },
        lambda i: bytes_moved.forecast_residual_(*i.values()),
        kernel_calls("forecast_residual_", device),
        features=n_features,
    )
    for name, chain in (
        ("eager", plain.chain_residual),
        ("eager-in-place", plain.chain_residual_into),
    ):
        case.providers[name] = lambda i, chain=chain: (
            lambda: chain(i["x"], i["history"], WEIGHTS, i["gates"])
        )
    case.providers["foreach"] = lambda i: lambda: foreach_residual(i["x"], i["history"], i["gates"])
    if rivals:  # hundreds of inputs would take minutes to compile
        case.providers |= float32_providers(plain.float32_residual, plain.float32_residual_into)
    return case


def by_group(case: Case, group: int, provider: str, device: str) -> None:
    """Adds to a residual case: one launch for every `group` features instead of one for all.

    Args:
        provider: `compile-in-place` (one graph, reused for every group) or the name of a kernel
            provider.
    """
    call = (
        compiled(plain.float32_residual_into)
        if provider == "compile-in-place"
        else kernels_of("forecast_residual_", device)[provider]
    )
    k = len(WEIGHTS)

    def bind(i: Inputs) -> Call:
        def run() -> None:
            for first in range(0, len(i["gates"]), group):
                slots = i["history"][first * k : (first + group) * k]
                call(i["x"], slots, i["weights"], i["gates"][first : first + group])

        return run

    case.providers[f"{provider}, {group} at a time"] = bind


def packed_case(
    n_features: int, shape: Sequence[int], device: str, dtype: torch.dtype = BF16
) -> Case:
    make = Maker(device, dtype)
    return Case(
        f"forecast_residual_ packed L={n_features} K=3",
        make.name,
        shape,
        lambda: {
            "x": make(*shape),
            "history": make(n_features, 3, *shape),
            "weights": make.small(WEIGHTS),
            "gates": 1e-3 * make(n_features, shape[0], shape[2]),
        },
        lambda i: bytes_moved.forecast_residual_packed_(*i.values()),
        kernel_calls("forecast_residual_packed_", device),
        features=n_features,
    )


def commit_list_case(
    n: int, shape: Sequence[int], device: str, dtype: torch.dtype = BF16, n_stats: int = 0
) -> Case:
    make = Maker(device, dtype)
    rows = [*TRANSITION, *STATS_ROWS[:n_stats]]
    case = Case(
        f"commit_ list n={n} K=3 R={n_stats}",
        make.name,
        shape,
        lambda: {
            "features": make.many(n, shape),
            "history": make.many(3 * n, shape),
            "transition": make.small(rows),
            "stats": torch.zeros(n, n_stats, device=device) if n_stats else None,
        },
        lambda i: sum(
            bytes_moved.commit_(f, i["history"][3 * j : 3 * j + 3], i["transition"])
            for j, f in enumerate(i["features"])
        ),
        kernel_calls("commit_list_", device),
        features=n,
    )
    if not n_stats:
        case.providers["foreach"] = lambda i: (
            lambda: foreach_commit(i["features"], i["history"], rows)
        )
    return case
