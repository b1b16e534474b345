"""Part `ops`: every operator, dtype and size, beside everything else that computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import _cases as cases
import _cases_lists as lists
import torch
from _cases import Case
from _measure import table
from _run import latency, run_case

from .run import Run

# Powers of two: elements of one slot of all features. The first is where the bars are.
SIZES = (25, 28, 20, 30, 12, 16, 22, 26, 14, 18, 24)
TINY_SIZES = (12, 10)
COMPILED = {25: (torch.bfloat16, torch.float32, torch.float16), 12: (torch.bfloat16,)}
COMPILED |= dict.fromkeys((20, 28, 30), (torch.bfloat16,))
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
WIDTH, FEATURES = 2048, 8


def op_cases(
    elements: int, device: str, dtype: torch.dtype, each: bool = False
) -> Iterator[Callable[[], Case]]:
    """All operators on this many elements, the most telling first.

    Args:
        each: Whether several features have that many each, rather than all together.
    """
    width = min(WIDTH, max(8, elements // FEATURES // 8))
    shape = (1, elements // width, width)
    part = shape if each else (1, elements // width // FEATURES, width)
    yield lambda: lists.residual_case(FEATURES, part, device, dtype)
    yield lambda: cases.forecast_case(shape, device, dtype)
    yield lambda: cases.commit_case(0, shape, device, dtype)
    yield lambda: cases.commit_case(2, shape, device, dtype)
    yield lambda: cases.calibrate_case(shape, device, dtype)
    yield lambda: lists.packed_case(FEATURES, part, device, dtype)
    yield lambda: lists.commit_list_case(FEATURES, part, device, dtype)
    yield lambda: lists.calibrate_list_case(FEATURES, part, device, dtype)
    yield lambda: cases.calibrate_case(shape, device, dtype, "rotate")
    yield lambda: cases.calibrate_case(shape, device, dtype, "scalars")
    yield lambda: cases.new_forecast_case(shape, device, dtype)
    yield lambda: lists.residual_case(1, shape, device, dtype)


def ops_part(run: Run, quick: bool = False) -> None:
    """Measures; `quick`: bfloat16 at 2^25 alone, and no latencies."""
    sizes = TINY_SIZES if run.tiny else SIZES
    order = [(e, dtype) for e in sizes for dtype in DTYPES]
    # The dtypes of models first, at every size.
    order.sort(key=lambda pair: sizes.index(pair[0]) > 0 and pair[1] != torch.bfloat16)
    if quick:
        order = order[:1]
    for number, (exponent, dtype) in enumerate(order):
        for make_case in op_cases(1 << exponent, run.device, dtype):
            case = make_case()
            name = f"{case.name}, {case.dtype}, 2^{exponent}"
            if not run.budget.allows(run.results, name):
                continue
            if not compiled_too(run, exponent, dtype):
                case.leave_out("compile")
            print(f"\n{name}")
            try:
                rows = run_case(case, run.device, run.results, run.rounds, cold=run.on_gpu)
                print(table(rows))
            except torch.cuda.OutOfMemoryError:
                run.results.left_out(name, "out of memory")
            del case
            run.release()
        if number == 0 and not quick:
            latencies(run)


def compiled_too(run: Run, exponent: int, dtype: torch.dtype) -> bool:
    """Whether torch.compile takes part: seconds of compiling for each operator."""
    if run.tiny:
        return exponent == TINY_SIZES[0] and dtype == torch.bfloat16
    return dtype in COMPILED.get(exponent, ())


def latencies(run: Run) -> None:
    """What one call costs before it moves anything, with and without a graph."""
    print("\none call on 2^12 elements")
    calls = 20 if run.tiny else 1000
    for make_case in op_cases(1 << 12, run.device, torch.bfloat16):
        case = make_case()
        if not run.budget.allows(run.results, f"call of {case.name}"):
            continue
        if run.tiny:
            case.leave_out("compile")
        latency(case, run.device, run.results, calls)
        torch._dynamo.reset()
