"""The operators on the CPU beside PyTorch, torch.compile, _foreach, cache-dit and a copy.

    python benchmarks/ops.py [--elements 8388608] [--rounds 15] [--out FILE.json]

8M bfloat16 elements per tensor (with 8 features: in all of one slot), all providers in one run and
in turn, best of all rounds. GB/s count the bytes that the operator must move, whatever a provider
does move. cache-dit's FoCa calibrator takes part where cache-dit (1.5.3) is installed:
approximate() beside forecast, update() beside commit_. The last table is the time of a call on 64
elements: what a call costs before it computes anything.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads OpenMP

import time
from pathlib import Path

import _cases as cases
import torch
from _measure import RESULTS, Results, table
from _run import run_case


def all_cases(shape: tuple[int, int, int]) -> list[cases.Case]:
    b, s, d = shape
    part = (b, max(1, s // 8), d)
    return [
        cases.forecast_case(shape, "cpu"),
        cases.calibrate_case(shape, "cpu"),
        cases.calibrate_list_case(8, part, "cpu"),
        cases.residual_case(2, shape, "cpu", rivals=True),
        cases.residual_case(8, part, "cpu", rivals=True),
        cases.packed_case(8, part, "cpu"),
        cases.commit_case(0, shape, "cpu"),
        cases.commit_case(2, shape, "cpu"),
    ]


def call_overhead(results: Results, calls: int = 2000) -> None:
    """Microseconds per call on 64 elements."""
    print("\none call on 64 elements")
    for case in all_cases((1, 8, 8)):
        inputs = case.inputs()
        for name, provider in case.providers.items():
            if name not in cases.kernel_providers("cpu"):
                continue
            call = provider(inputs)
            best = float("inf")
            for _ in range(5):
                started = time.perf_counter()
                for _ in range(calls):
                    call()
                best = min(best, 1e3 * (time.perf_counter() - started) / calls)
            results.add(case=f"call of {case.name}", provider=name, dtype="bfloat16", ms=best)
            print(f"  {case.name:<36}{name:<12}{1e3 * best:>7.2f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=8 << 20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "ops-cpu.json")
    args = parser.parse_args()

    results = Results(args.out, "cpu")
    shape = (1, max(8, args.elements // 2048), 2048)
    print(", ".join(f"{k} {v}" for k, v in results.common.items()))
    with torch.inference_mode():
        for case in all_cases(shape):
            print(f"\n{case.name}, {list(case.shape)} bfloat16")
            print(table(run_case(case, "cpu", results, args.rounds)))
        call_overhead(results)
    print(f"\nwritten: {args.out}")


if __name__ == "__main__":
    main()
