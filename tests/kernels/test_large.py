"""More than 2^31 elements: every index must be 64 bits wide.

Memory that is only read comes from an anonymous mapping, where untouched pages cost nothing, so a
history of 2^31 elements takes no memory at all.
"""

import mmap

import pytest
import torch
from tensors import Maker

BF16 = torch.bfloat16
BEYOND = 2**31 + 1027
PLACES = (0, 2**31 - 1, 2**31, BEYOND - 1)  # where the tests put numbers


def untouched(*shape, device="cpu"):
    """bfloat16 zeros that take no memory until they are written."""
    n = torch.Size(shape).numel()
    if device != "cpu":
        return torch.zeros(shape, dtype=BF16, device=device)
    return torch.frombuffer(mmap.mmap(-1, 2 * n), dtype=BF16).view(shape)


def marked(backend, factor):
    t = untouched(BEYOND, device=backend.device)
    for i, place in enumerate(PLACES):
        t[place] = factor * (i + 1)
    return t


def holds(t, factor):
    assert [t[place].item() for place in PLACES] == [factor * (i + 1) for i in range(len(PLACES))]
    assert torch.count_nonzero(t).item() == len(PLACES)


def test_arena_with_slots_beyond_2_to_the_31(backend):
    """Zero weights read nothing, so only the last slot of the arena costs time."""
    if backend.interpreted:
        pytest.skip("two thousand terms for each of a thousand programs")
    n = 2**20 + 16
    history = untouched(256, 8, n, device=backend.device)
    assert history.numel() > 2**31
    make = Maker(BF16, backend.device)
    history[-1, -1] = make(n)
    weights = torch.zeros(256, 8)
    weights[-1, -1] = 2.0
    x = torch.zeros(n, dtype=BF16, device=backend.device)
    backend.call("forecast_residual_packed_", x, history, weights, make(0))
    assert torch.equal(x, 2 * history[-1, -1])


@pytest.fixture
def roomy(backend):
    if backend.interpreted or backend.name == "reference-cpu":
        pytest.skip("takes minutes, or tens of gigabytes")
    return backend


@pytest.mark.slow
def test_forecast_beyond_2_to_the_31(roomy):
    out = untouched(BEYOND, device=roomy.device)
    roomy.call("forecast_out", [marked(roomy, 1.0)], torch.tensor([2.0]), out)
    holds(out, 2.0)


@pytest.mark.slow
def test_forecast_residual_beyond_2_to_the_31(roomy):
    x, gate = marked(roomy, 1.0), torch.full((BEYOND,), 3.0, dtype=BF16, device=roomy.device)
    roomy.call("forecast_residual_", x, [marked(roomy, 1.0)], torch.tensor([1.0]), [gate])
    holds(x, 4.0)


@pytest.mark.slow
def test_commit_beyond_2_to_the_31(roomy):
    slot, stats = untouched(BEYOND, device=roomy.device), torch.zeros(1, device=roomy.device)
    transition = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    roomy.call("commit_", marked(roomy, 1.0), [slot], transition, stats)
    holds(slot, 2.0)
    assert stats.item() == 1 + 4 + 9 + 16


@pytest.mark.slow
def test_forecast_calibrate_beyond_2_to_the_31(roomy):
    f_km1 = untouched(BEYOND, device=roomy.device)
    slope = untouched(BEYOND, device=roomy.device)
    f_k = marked(roomy, 2.0)
    roomy.call("forecast_calibrate_tensor", f_k, f_km1, slope, torch.tensor([1.0, 1.0]))
    holds(f_km1, 3.0)
