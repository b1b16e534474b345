"""One run on a GPU that answers: are the kernels right, and how near to a copy do they come?

    python benchmarks/gpu_suite.py [--quick] [--out FILE.json]
    python benchmarks/gpu_suite.py --device cpu        # small sizes: tests the suite itself

First every operator of every provider against float64: called eagerly, from a captured CUDA graph
and on a second stream. Then milliseconds and GB/s beside a device copy of the same bytes, at sizes
of DiT-XL/2 and FLUX.1. --quick stays under three minutes on an H200. The JSON file is rewritten
after every measurement, so a run that is cut off keeps what it has.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads OpenMP

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import _cases as cases
import torch
from _correct import check
from _measure import RESULTS, Results, table
from _run import run_case

from foca_kernels import backend_report
from foca_kernels.registry import FUNCTIONS

QUICK_SECONDS = 170
DIT_XL = (2, 256, 1152)  # two guidance branches, 28 blocks of attention and feed-forward
FLUX = (1, 4096, 3072)  # image tokens of 1024 x 1024, 57 blocks
TINY = (1, 64, 128)


def correctness(device: str, results: Results, quick: bool) -> bool:
    """Prints and keeps one row per operator, provider, dtype and mode; True if all are right."""
    right = True
    dtypes = [torch.bfloat16, torch.float32] + [torch.float16] * (not quick)
    for provider, functions in cases.kernel_providers(device).items():
        for name in FUNCTIONS.values():
            for dtype in dtypes:
                text = str(dtype).removeprefix("torch.")
                try:
                    errors = dict(check(name, functions[name], dtype, device))
                except Exception as error:
                    errors = {f"{type(error).__name__}: {error}": float("inf")}
                for mode, error in errors.items():
                    ok = error <= 1.0
                    right &= ok
                    results.add(
                        case=f"correctness of {name}", provider=provider, dtype=text, mode=mode,
                        ok=ok, error=error if error < float("inf") else "not finite",
                    )  # fmt: skip
                    if not ok:
                        print(f"WRONG: {provider} {name} {text} {mode}: {error:.3g} roundings")
        print(f"{provider}: checked {len(FUNCTIONS)} operators")
    return right


def timed_cases(device: str, quick: bool) -> Iterator[Callable[[], cases.Case]]:
    """The most telling first, since a quick run may end before the last."""
    if device == "cpu":
        sizes, small, features = [TINY], TINY, 2
    else:
        sizes, small, features = ([FLUX] if quick else [FLUX, DIT_XL]), DIT_XL, 56
    large = sizes[0]
    yield lambda: cases.residual_case(features, small, device, rivals=False)
    yield lambda: cases.packed_case(features, small, device)
    for size in sizes:
        yield lambda s=size: cases.forecast_case(s, device)
        yield lambda s=size: cases.calibrate_case(s, device)
        yield lambda s=size: cases.commit_case(0, s, device)
        yield lambda s=size: cases.commit_case(2, s, device)
    yield lambda: cases.packed_case(min(features, 19), large, device)
    yield lambda: cases.residual_case(min(features, 19), large, device, rivals=False)
    yield lambda: cases.calibrate_list_case(features, small, device)
    yield lambda: cases.residual_case(4, large, device, rivals=True)
    if not quick:
        yield lambda: cases.residual_case(57, large, device, rivals=False)
        yield lambda: cases.packed_case(57, large, device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, under three minutes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu-<device>.json")
    args = parser.parse_args()
    started = time.perf_counter()
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu tests the suite itself")

    results = Results(None, args.device)
    name = results.common["device"].lower().replace(" ", "-")
    results.path = args.out or RESULTS / f"gpu-{name}.json"
    print(", ".join(f"{k} {v}" for k, v in results.common.items()))
    print(f"backends: {backend_report()}")

    with torch.inference_mode():
        right = correctness(args.device, results, args.quick)
        print(f"correct: {right}, after {time.perf_counter() - started:.0f} s")
        for make_case in timed_cases(args.device, args.quick):
            if args.quick and time.perf_counter() - started > QUICK_SECONDS:
                print("out of time: the remaining cases are left out")
                break
            case = make_case()
            print(f"\n{case.name}, {list(case.shape)} bfloat16")
            cold = args.device != "cpu"
            try:
                print(table(run_case(case, args.device, results, args.rounds, cold)))
            except torch.cuda.OutOfMemoryError as error:
                print(f"  left out: {str(error).splitlines()[0]}")
            del case
            if args.device != "cpu":
                torch.cuda.empty_cache()
    print(f"\nwritten: {results.path}, {time.perf_counter() - started:.0f} s")
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
