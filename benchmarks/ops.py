"""The operators on the CPU beside PyTorch, torch.compile, _foreach and a copy.

    python benchmarks/ops.py [ratios] [sizes] [calibrators] [features] [--threads 1]

ratios        every operator on 8M bfloat16 elements per tensor beside all that computes the same,
              and the time of a call on 64 elements: what it costs before it computes anything
sizes         the operators from 2^12 elements up: how near to a copy, and beside eager
calibrators   one feature's forecast and commit beside the installed cache-dit's calibrators;
              with MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ in the environment, as
              `make bench` sets them in a second run, freed memory is kept for the next temporary
features      cost against the number of features, with the line that fits it

Without names: all of them. All providers of a case run in one run and in turn, best of all rounds,
on buffers that are cold; each case in a process of its own, so that what the C library does with
big temporaries does not depend on what ran before. GB/s count the bytes that the operator must
move, whatever a provider does move. Each writes `benchmarks/results/<name>-cpu.json` (ratios:
`ops-cpu.json`), with --threads 1 `<name>-cpu-1-thread.json`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _paths  # noqa: F401  (first: before torch)

# isort: split
import _calibrators
import _cases as cases
import _cases_lists as lists
import numpy as np
import torch
from _measure import RESULTS, Results, table
from _run import in_own_process, latency, run_case
from suite.ops import op_cases

DTYPES = (torch.bfloat16, torch.float32)
ELEMENTS = 8 << 20  # of every tensor
SIZES = (12, 14, 16, 18, 20, 22, 24, 25)
FEATURES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
PER_FEATURE = 1 << 17
FLUX = 4096 * 3072  # one feature of FLUX.1 at 1024 x 1024
CALIBRATED = (1 << 12, 1 << 16, 1 << 18, 1 << 20, 1 << 22, ELEMENTS, FLUX)


def ratio_cases(elements: int) -> list[cases.Case]:
    shape = (1, elements // 2048, 2048)
    own = [lists.residual_case(2, shape, "cpu")]
    return own + [make() for make in op_cases(elements, "cpu", torch.bfloat16, each=True)]


def apart(results: Results, run: Callable[[Results], Any]) -> list[dict[str, Any]]:
    """Adds the rows that `run` measures in a process of its own; returns those with a time."""

    def rows() -> list[dict[str, Any]]:
        own = Results(None, "cpu")
        run(own)
        return own.rows

    found: list[dict[str, Any]] = in_own_process(rows)
    for row in found:
        results.add(**row)
    return [row for row in found if "ms" in row]


def measure(results: Results, case: cases.Case, rounds: int, **more: Any) -> list[dict[str, Any]]:
    """The rows of a case, which are shown."""
    print(f"\n{case.name}, {list(case.shape)} {case.dtype}", flush=True)
    rows = apart(results, lambda own: run_case(case, "cpu", own, rounds, **more))
    print(table(rows), flush=True)
    return rows


def ratios(results: Results, rounds: int) -> None:
    for case in ratio_cases(ELEMENTS):
        measure(results, case, rounds)
    print("\none call on 64 elements", flush=True)
    apart(results, latencies)


def latencies(results: Results) -> None:
    kernels = set(cases.kernel_providers("cpu"))
    for make in op_cases(64, "cpu", torch.bfloat16):
        latency(make(), "cpu", results, calls=2000, only=kernels)


def sizes(results: Results, rounds: int) -> None:
    for exponent in SIZES:
        for make in op_cases(1 << exponent, "cpu", torch.bfloat16):
            case = make()
            case.leave_out("compile", "eager-float32", "eager-in-place")
            measure(results, case, rounds if exponent > 20 else 3 * rounds)


def calibrators(results: Results, rounds: int) -> None:
    for elements in CALIBRATED:
        for dtype in DTYPES:
            for case in _calibrators.cases(elements, dtype):
                few = max(3, rounds // 3) if elements >= ELEMENTS else rounds
                measure(results, case, few, memory="kept" if kept_memory() else "default")


def kept_memory() -> bool:
    """Whether the C library was told to keep freed memory: big temporaries then cost no faults."""
    return "MALLOC_TRIM_THRESHOLD_" in os.environ


def features(results: Results, rounds: int) -> None:
    """A sum over L features, of one size each or of one size in all; and the line that fits."""
    for kept in ("each", "all"):
        times: dict[str, list[float]] = {}
        for count in FEATURES:
            each = PER_FEATURE if kept == "each" else (PER_FEATURE * 16) // count
            shape = (1, each // 512, 512)
            case = lists.residual_case(count, shape, "cpu", rivals=False)
            case.leave_out("foreach", "eager-in-place")
            case.providers |= {
                "packed": packed_beside(lists.packed_case(count, shape, "cpu")),
            }
            for row in measure(results, case, rounds, features=count, kept=kept):
                times.setdefault(row["provider"], []).append(row["ms"])
        for provider, ms in times.items():
            add_line(results, provider, kept, ms)


def packed_beside(packed: cases.Case) -> cases.Provider:
    """The packed form as one more provider of the list's case, on inputs of its own."""
    call = packed.providers["cpu-cpp"]
    return lambda _: call(packed.inputs())


def add_line(results: Results, provider: str, kept: str, ms: list[float]) -> None:
    """Least squares of milliseconds over the number of features."""
    slope, intercept = np.polyfit(FEATURES, ms, 1)
    spread = np.asarray(ms) - (slope * np.asarray(FEATURES) + intercept)
    r2 = 1 - float(np.square(spread).sum() / np.square(np.asarray(ms) - np.mean(ms)).sum())
    results.add(
        case="line", provider=provider, kept=kept, slope_ms=float(slope),
        intercept_ms=float(intercept), r2=r2,
    )  # fmt: skip
    print(f"{kept:<5}{provider:<10}{slope:.4f} ms a feature + {intercept:.4f} ms, R2 {r2:.4f}")


MEASURES = {"ratios": ratios, "sizes": sizes, "calibrators": calibrators, "features": features}
FILES = {"ratios": "ops"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=[*MEASURES, []], help="default: all")
    parser.add_argument("--threads", type=int, help="default: all processors")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    mark = "-1-thread" if args.threads == 1 else ""
    mark += "-kept" if kept_memory() else ""
    with torch.inference_mode():
        for what in args.what or MEASURES:
            path = args.out / f"{FILES.get(what, what)}-cpu{mark}.json"
            results = Results(path, "cpu")
            print(", ".join(f"{k} {v}" for k, v in results.common.items()))
            MEASURES[what](results, args.rounds)
            print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
