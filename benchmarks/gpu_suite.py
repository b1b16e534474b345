"""One run on a GPU that answers: are the kernels right, and is a skipped step really free?

    python benchmarks/gpu_suite.py                        # everything: six parts of eight minutes
    python benchmarks/gpu_suite.py --part ops --part skip # some parts
    python benchmarks/gpu_suite.py --quick                # correctness and bandwidth, three minutes
    python benchmarks/gpu_suite.py --part ops --no-check  # a part, where a run before has checked
    python benchmarks/gpu_suite.py --device cpu           # tiny shapes: tests the suite itself

First every operator of every provider against float64: eagerly, compiled, from a captured graph, on
a second stream and in a second thread. Then the parts, each within eight minutes:

    ops        every operator, dtype and size beside eager, foreach, compile and Triton
    skip       the whole skipped step at the shapes of published models, and where its time goes
    commit     statistics beside separate passes, and what of a commit hides behind the full step
    e2e-flux, e2e-dit, e2e-video
               denoising loops with and without caches, ours and the installed ones

Rows are measured in the order of their importance; what no longer fits a part's time is dropped and
noted. Every row has device, driver, versions, commit and date, and is on disk once it is measured:
one file per part, `gpu-<device>-<part>.json`. docs/performance.md says how to read them.

Without diffusers the models are plain PyTorch blocks of the same shapes; every row says which.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import _paths  # first: before torch
import torch
from _measure import RESULTS, Budget, Results
from suite.build import build_if_needed
from suite.run import PART_SECONDS, Run, results_file, why

PARTS = ("ops", "skip", "commit", "e2e-flux", "e2e-dit", "e2e-video")
QUICK_SECONDS = 170  # after the build
QUICK_LEAST = 60  # of bandwidth, whatever checking took before


def correctness(device: str, results: Results, quick: bool) -> bool:
    """Prints and keeps one row per operator, provider, dtype and mode; True if all are right."""
    from _cases import kernel_providers
    from _correct import check

    from foca_kernels.registry import FUNCTIONS

    right = True
    dtypes = [torch.bfloat16, torch.float32] + [torch.float16] * (not quick)
    for number, (provider, functions) in enumerate(kernel_providers(device).items()):
        for name in FUNCTIONS.values():
            for dtype in dtypes:
                text = str(dtype).removeprefix("torch.")
                compiled = number == 0 and dtype == torch.bfloat16 and not quick
                try:
                    errors = dict(check(name, functions[name], dtype, device, compiled))
                except Exception as error:
                    errors = {why(error): float("inf")}
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


def measure(part: str, run: Run, quick: bool) -> None:
    """One part."""
    if part == "ops":
        from suite.ops import ops_part

        ops_part(run, quick)
    elif part == "skip":
        from suite.skipped import skip_part

        skip_part(run)
    elif part == "commit":
        from suite.commits import commit_part

        commit_part(run)
    else:
        from suite.endtoend import end_to_end

        end_to_end(run, part.removeprefix("e2e-"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all of them")
    parser.add_argument("--quick", action="store_true", help="correctness and bandwidth only")
    parser.add_argument(
        "--no-check", action="store_true", help="measure only: a run before this one checked"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=PART_SECONDS, help="of each part")
    parser.add_argument("--out", type=Path, help="folder; default: benchmarks/results")
    args = parser.parse_args()
    started = time.perf_counter()
    on_gpu = args.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu tests the suite itself")
    if on_gpu:
        build_if_needed(_paths.ROOT)

    from foca_kernels import backend_report

    built = time.perf_counter()
    wanted = "triton" if os.environ.get("FOCA_BACKEND") == "triton" else "cpp"
    if on_gpu and (serving := backend_report()["CUDA"])["backend"] != wanted:
        parser.error(
            f"the CUDA library does not serve ({serving}); FOCA_BACKEND=triton goes without"
        )
    folder = args.out or (RESULTS if on_gpu else _paths.ROOT / "build/suite-on-cpu")
    found = Results(None, args.device)
    print(", ".join(f"{k} {v}" for k, v in found.common.items()))
    print(f"backends: {backend_report()}")
    found.path = results_file(folder, found, "quick" if args.quick else "correctness")
    files, right = [] if args.no_check and not args.quick else [found.path], True
    if not args.no_check:
        with torch.inference_mode():
            right = correctness(args.device, found, args.quick)
        print(f"correct: {right}, after {time.perf_counter() - started:.0f} s")
    for number, part in enumerate(["ops"] if args.quick else args.part or PARTS):
        # What came before the first part is taken from its time, so that one part is one call.
        seconds = args.seconds - (time.perf_counter() - started if number == 0 else 0.0)
        results = found
        if args.quick:
            seconds = max(QUICK_SECONDS - (time.perf_counter() - built), QUICK_LEAST)
        else:
            results = Results(None, args.device)
            results.path = results_file(folder, results, part)
            files.append(results.path)
        print(f"\n== {part}", flush=True)
        run = Run(args.device, results, Budget(seconds), tiny=not on_gpu, rounds=args.rounds)
        try:
            with torch.inference_mode():
                measure(part, run, args.quick)
        except Exception as error:  # one part that breaks does not cost the others
            right = False
            results.left_out(f"the rest of part {part}", why(error))
        run.release()
    print(f"\nwritten after {time.perf_counter() - started:.0f} s:", *files, sep="\n  ")
    return 0 if right else 1


if __name__ == "__main__":
    raise SystemExit(main())
