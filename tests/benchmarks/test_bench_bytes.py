"""The bytes that every measured case counts, against the tensors that it reads and writes."""

import math

import pytest
import torch
from suite.ops import op_cases

SMALL = ("weights", "steps", "transition", "stats")  # not counted: a few numbers
DTYPES = (torch.bfloat16, torch.float32)


CASES = [make() for dtype in DTYPES for make in op_cases(1 << 10, "cpu", dtype)]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.name}, {c.dtype}")


def named_tensors(inputs):
    """(name, tensor) of all arguments that are features."""
    for name, value in inputs.items():
        if name in SMALL or not isinstance(value, (list, torch.Tensor)):
            continue
        for tensor in value if isinstance(value, list) else [value]:
            yield name, tensor


def results(inputs, returned):
    """Everything that a call left behind: written arguments, statistics and a returned tensor."""
    kept = [t.clone() for _, t in named_tensors(inputs)]
    if inputs.get("stats") is not None:
        kept.append(inputs["stats"].clone())
    return kept + ([returned] if isinstance(returned, torch.Tensor) else [])


def put(kept, inputs, returned):
    """`results`, with new tensors in the place of the arguments that others write."""
    names = [name for name, _ in named_tensors(inputs)]
    if isinstance(returned, list):  # a new history, and statistics
        kept[names.index("history") :] = returned
    elif isinstance(returned, torch.Tensor):
        written = [n for n in names if n in ("x", "f_km1", "out")]
        kept[names.index(written[0]) if written else -1] = returned
    return kept


@every_case
def test_counts_each_tensor_read_and_each_written(case):
    """A tensor is read if NaN in it comes out elsewhere, and written if it changes."""
    kernel = case.providers["cpu-cpp"]

    def fresh():
        torch.manual_seed(1)
        return case.inputs()

    moved = 0
    count = len(list(named_tensors(fresh())))
    for index in range(count):
        plain, probed = fresh(), fresh()
        _, before = list(named_tensors(plain))[index]
        before = before.clone()
        name, tensor = list(named_tensors(probed))[index]
        tensor.fill_(math.nan)
        returned = kernel(plain)(), kernel(probed)()
        written = not torch.equal(list(named_tensors(plain))[index][1], before)
        clean, dirty = results(plain, returned[0]), results(probed, returned[1])
        if not written:  # its own NaN stays where it is
            clean[index] = dirty[index] = torch.zeros(())
        read = any(
            b.isnan().any() and not a.isnan().any() for a, b in zip(clean, dirty, strict=True)
        )
        assert read or written, f"{name} takes no part"
        moved += tensor.numel() * tensor.element_size() * (read + written)
    inputs = fresh()
    returned = kernel(inputs)()
    if isinstance(returned, torch.Tensor):
        moved += returned.numel() * returned.element_size()
    assert case.nbytes(inputs) == moved


@every_case
def test_all_providers_compute_the_same(case):
    """What is slower must at least be the same computation."""
    outcomes = {}
    for name, provider in case.providers.items():
        if name.startswith("compile"):
            continue
        torch.manual_seed(2)
        inputs = case.inputs()
        returned = provider(inputs)()
        outcomes[name] = put(results(inputs, None), inputs, returned)
    ours = outcomes.pop("cpu-cpp")
    for name, theirs in outcomes.items():
        for a, b in zip(ours, theirs, strict=True):
            tolerance = 0.05 if case.dtype == "bfloat16" else 1e-4
            assert torch.allclose(a.float(), b.float(), rtol=tolerance, atol=2 * tolerance), name
