"""Zero weights, NaN, infinity and signed zero."""

import math

import pytest
import torch
from tensors import Maker, clones, same_bits

NAN, INF = math.nan, math.inf


@pytest.fixture(params=["host", "device"])
def small(request, backend):
    """Makes small tensors on the CPU or on the features' device."""
    device = backend.device if request.param == "device" else "cpu"
    return lambda values: torch.tensor(values, dtype=torch.float32, device=device)


def filled(backend, dtype, *values, n=17):
    return [torch.full((n,), v, dtype=dtype, device=backend.device) for v in values]


def test_forecast_skips_unset_slots(backend, dtype, small):
    history = filled(backend, dtype, 1.0, NAN, 2.0, INF)
    result = backend.call("forecast", history, small([1.0, 0.0, 0.5, -0.0]))
    assert torch.equal(result, torch.full_like(result, 2.0))
    zero = backend.call("forecast", history, small([0.0, 0.0, 0.0, 0.0]))
    assert same_bits(zero, torch.zeros_like(zero))


def test_residual_skips_unset_slots_and_the_gates_of_unused_features(backend, dtype, small):
    history = filled(backend, dtype, 1.0, NAN, NAN, NAN, 2.0, 3.0)
    gates = filled(backend, dtype, 2.0, NAN, 1.0)
    weights = small([[1.0, 0.0], [0.0, 0.0], [1.0, -1.0]])
    x = filled(backend, dtype, 5.0)[0]
    got = x.clone()
    backend.call("forecast_residual_", got, history, weights, gates)
    assert torch.equal(got, torch.full_like(x, 5 + 2 * 1 + 1 * (2 - 3)))
    packed = torch.stack(history).view(3, 2, 1, 1, 17)
    got = x.view(1, 1, 17).clone()
    backend.call(
        "forecast_residual_packed_", got, packed, weights, torch.stack(gates).view(3, 1, 17)
    )
    assert torch.equal(got, torch.full_like(got, 6.0))


def test_residual_of_unused_features_leaves_x_alone(backend, dtype, small):
    x = torch.tensor([-0.0, 0.0, NAN, INF, 1.5], dtype=dtype, device=backend.device)
    history = filled(backend, dtype, NAN, NAN, n=5)
    got = x.clone()
    backend.call("forecast_residual_", got, history, small([0.0, 0.0]), [])
    assert torch.equal(got.signbit()[:2], x.signbit()[:2])  # -0 + 0 would be +0
    assert torch.equal(got.nan_to_num(7.0), x.nan_to_num(7.0))


def test_commit_skips_zero_entries(backend, dtype, small):
    feature, *history = filled(backend, dtype, 3.0, 1.0, NAN, NAN)
    transition = small([[0, 0, 0, 1], [-1, 0, 0, 1], [0, 0, 0, 0], [2, 0, 0, 0]])
    stats = torch.zeros(1, device=backend.device)
    backend.call("commit_", feature, history, transition, stats)
    assert [slot[0].item() for slot in history] == [3.0, 2.0, 0.0]
    assert all(torch.equal(slot, slot[:1].expand(17)) for slot in history)
    assert stats.item() == 17 * 2.0**2


def test_nan_and_infinity_stay_in_their_element(backend, dtype, small):
    values = [NAN, INF, -INF, 1.0]
    special = torch.tensor(values * 9, dtype=dtype, device=backend.device)
    ones = torch.ones_like(special)
    result = backend.call("forecast", [special, ones], small([2.0, 1.0]))
    want = torch.tensor([NAN, INF, -INF, 3.0] * 9, dtype=dtype, device=backend.device)
    assert torch.equal(result.isnan(), want.isnan())
    assert torch.equal(result.nan_to_num(7.0), want.nan_to_num(7.0))

    x = ones.clone()
    backend.call("forecast_residual_", x, [special], small([2.0]), [])
    assert torch.equal(x.nan_to_num(7.0), result.nan_to_num(7.0))

    history, stats = clones([special]), torch.zeros(1, device=backend.device)
    backend.call("commit_", ones, history, small([[2.0, 1.0], [1.0, 0.0]]), stats)
    assert torch.equal(history[0].nan_to_num(7.0), result.nan_to_num(7.0))
    assert stats.isnan().all()

    f_km1 = ones.clone()
    backend.call("forecast_calibrate_tensor", special, f_km1, ones, small([1.0, 1.0]))
    # inf + (1 + (inf - 1)) / 2 = inf; NaN stays; 1 + (1 + 0) / 2 = 1.5.
    want = torch.tensor([NAN, INF, -INF, 1.5] * 9, dtype=dtype, device=backend.device)
    assert torch.equal(f_km1.isnan(), want.isnan())
    assert torch.equal(f_km1.nan_to_num(7.0), want.nan_to_num(7.0))


def test_overflow_rounds_to_infinity_and_tiny_values_survive(backend, dtype, small):
    info = torch.finfo(dtype)
    if dtype is torch.float64:
        pytest.skip("weights are float32: nothing overflows in float64")
    top, tiny = filled(backend, dtype, info.max, info.smallest_normal)
    assert backend.call("forecast", [top], small([2.0])).isinf().all()
    half = backend.call("forecast", [tiny], small([0.5]))
    assert torch.equal(half.double(), tiny.double() / 2)  # a subnormal number


def test_rounding_is_to_nearest_even(backend, dtype, small):
    """Halves and quarters of an ulp around 1: every case of the rounding rule."""
    if dtype not in (torch.bfloat16, torch.float16):
        pytest.skip("the sums below are exact in float32")
    eps = torch.finfo(dtype).eps
    steps = torch.tensor([0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75], device=backend.device)
    x, part = torch.ones(7, dtype=dtype, device=backend.device), (steps * eps).to(dtype)
    result = backend.call("forecast", [x, part], small([1.0, 1.0]))
    assert torch.equal(result, (1 + steps * eps).to(dtype))
    assert result.tolist() == [1 + k * eps for k in (0, 0, 1, 1, 1, 2, 2)]


def test_a_nan_of_any_payload_stays_nan(backend):
    """All-ones mantissas would overflow into an infinity if they were rounded like numbers."""
    x = torch.tensor([0x7FFF, -1, 0x7F81], dtype=torch.int16).view(torch.bfloat16)
    result = backend.call("forecast", [x.to(backend.device)], torch.ones(1))
    assert result.isnan().all()


def test_empty_features_have_zero_norm(backend, dtype, small):
    make = Maker(dtype, backend.device)
    stats = torch.full((1,), 9.0, device=backend.device)
    backend.call("commit_", make(0, 3), [make(0, 3)], small([[1.0, 0.0], [1.0, 1.0]]), stats)
    assert stats.item() == 0
