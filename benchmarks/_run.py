"""Measures one case: all its providers and a copy of the same bytes, in one run."""

from __future__ import annotations

from typing import Any

import torch
from _cases import Case
from _measure import Results, copy_calls, rotations, time_in_turn


def run_case(
    case: Case, device: str, results: Results, rounds: int, cold: bool = True
) -> list[dict[str, Any]]:
    """One row per provider: milliseconds, GB/s of the bytes that must move, GB/s of a copy.

    A provider that fails is reported and left out: one broken rival does not cost the run.
    """
    torch.manual_seed(0)
    first = case.inputs()
    nbytes = case.nbytes(first)
    n_sets = rotations(nbytes) if cold else 1
    sets = [first, *(case.inputs() for _ in range(n_sets - 1))]
    runs = {"copy": copy_calls(nbytes, device, n_sets)}
    for name, provider in case.providers.items():
        calls = [provider(inputs) for inputs in sets]
        try:
            calls[0]()
        except Exception as error:
            print(f"  {name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        runs[name] = calls
    times = time_in_turn(runs, device, rounds)
    rate = {name: nbytes / ms / 1e6 for name, ms in times.items()}
    rows = []
    for name, ms in times.items():
        row = {
            "case": case.name,
            "provider": name,
            "dtype": "bfloat16",
            "shape": list(case.shape),
            "ms": ms,
            "gbs": rate[name],
            "copy_gbs": rate["copy"],
            "bytes": nbytes,
            "buffer_sets": n_sets,
        }
        results.add(**row)
        rows.append(row)
    return rows
