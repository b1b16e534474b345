"""Every operator against the float64 oracle: sizes, shapes, dtypes, weights on host and device."""

import oracle
import pytest
import torch
from oracle import Expected, assert_close
from tensors import Guarded, Maker, clones, same_bits, shapes

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


# ---- forecast_calibrate ----


@pytest.mark.parametrize("form", ["float", "tensor", "device", "list", "rotate"])
@pytest.mark.parametrize(("h", "h_prev"), [(1.0, 1.0), (-0.25, -0.375)])
def test_forecast_calibrate(backend, dtype, form, h, h_prev):
    for shape in shapes(backend):
        make = Maker(dtype, backend.device)
        f_k, f_km1, d_anchor = make.many(3, *shape)
        expected = oracle.calibrate(f_k, f_km1, d_anchor, h, h_prev)
        steps = torch.tensor([h, h_prev], device=backend.device if form == "device" else "cpu")
        now, before, slope = clones([f_k, f_km1, d_anchor])
        if form == "float":
            backend.call("forecast_calibrate", now, before, slope, h, h_prev)
        elif form == "list":
            backend.call("forecast_calibrate_list", [now], [before], [slope], steps)
        elif form == "rotate":
            backend.call("forecast_calibrate_rotate", now, before, slope, steps)
            assert same_bits(before, f_k)
            now, before = f_k.clone(), now
        else:
            backend.call("forecast_calibrate_tensor", now, before, slope, steps)
        assert_close(before, expected)
        assert same_bits(now, f_k)
        assert same_bits(slope, d_anchor)


def test_forecast_calibrate_list_of_many_shapes(backend, dtype):
    make = Maker(dtype, backend.device)
    all_shapes = [(3, 5), (0,), (1,), (2, 3, 4), (17,), (1025,)] * 3
    f_k, f_km1, d_anchor = ([make(*s) for s in all_shapes] for _ in range(3))
    expected = [oracle.calibrate(*t, 0.5, 0.75) for t in zip(f_k, f_km1, d_anchor, strict=True)]
    steps = torch.tensor([0.5, 0.75])
    backend.call("forecast_calibrate_list", f_k, f_km1, d_anchor, steps)
    for got, want in zip(f_km1, expected, strict=True):
        assert_close(got, want)


# ---- forecast ----


@pytest.mark.parametrize("k", range(1, 9))
def test_forecast(backend, dtype, k):
    for shape in shapes(backend):
        make = Maker(dtype, backend.device, seed=k)
        history, weights = make.many(k, *shape), make.small(k, on_device=k % 2 == 0)
        before = clones(history)
        expected = oracle.weighted_sum(history, weights.tolist())
        result = backend.call("forecast", history, weights)
        assert result.dtype == dtype
        assert_close(result, expected)
        out = make(*shape)
        assert backend.call("forecast_out", history, weights, out) is None
        assert same_bits(out, result)
        assert all(map(same_bits, history, before))


# ---- forecast_residual_ ----


def gate_shapes(x):
    yield None
    if x.dim():
        yield (x.shape[-1],)
    if x.dim() == 3:
        b, s, d = x.shape
        yield from ((1, 1, d), (b, 1, d), (b, s, d))


@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize(("n_features", "k"), [(1, 1), (2, 3), (12, 3), (3, 8)])
@pytest.mark.parametrize(
    "other", ["same dtypes", "float32 gates", "float32 history", "bf16 history"]
)
def test_forecast_residual(backend, dtype, other, n_features, k, per_feature):
    make = Maker(dtype, backend.device)
    history_dtype = {"float32 history": FP32, "bf16 history": BF16}.get(other, dtype)
    gate_dtype = dtype if other in ("same dtypes", "bf16 history") else FP32
    few = backend.interpreted or n_features > 3
    for shape in [(2, 3, 33)] if few else [(2, 3, 33), (7,), (1025,), (3, 8), (2, 0, 3), ()]:
        x = make(*shape)
        weights = make.small(n_features, k) if per_feature else make.small(k)
        weights = weights.to(backend.device) if n_features % 2 else weights
        history = [make(*shape, dtype=history_dtype) for _ in range(n_features * k)]
        for gate_shape in list(gate_shapes(x))[:: 3 if backend.interpreted else 1]:
            gates = (
                [make(*gate_shape, dtype=gate_dtype) for _ in range(n_features)]
                if gate_shape is not None
                else []
            )
            expected = oracle.residual(x, history, weights, gates)
            got = x.clone()
            backend.call("forecast_residual_", got, history, weights, gates)
            assert_close(got, expected)


@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("batch", [None, 1, 2])
@pytest.mark.parametrize(("n_features", "k"), [(1, 1), (3, 2), (12, 3), (2, 8)])
def test_forecast_residual_packed(backend, dtype, batch, n_features, k, per_feature):
    make = Maker(dtype, backend.device)
    more = [] if backend.interpreted else [(2, 1, 64), (2, 5, 1024)]
    for shape in [(2, 3, 33), *more] + [(5,), (2, 3, 0)] * (batch is None):
        x = make(*shape)
        for history_dtype, gate_dtype in ((dtype, FP32), (FP32, dtype), (BF16, dtype)):
            history = make(n_features, k, *shape, dtype=history_dtype)
            weights = make.small(n_features, k) if per_feature else make.small(k)
            weights = weights.to(backend.device) if k % 2 else weights
            gates = make(n_features, batch, x.shape[-1], dtype=gate_dtype) if batch else make(0)
            rows = [gate.unsqueeze(1) for gate in gates] if batch else []
            expected = oracle.residual(x, list(history.flatten(0, 1)), weights, rows)
            got = x.clone()
            backend.call("forecast_residual_packed_", got, history, weights, gates)
            assert_close(got, expected)


def test_forecast_residual_rounds_once(backend, dtype):
    """Sixty contributions too small to move x one by one must move it together."""
    if dtype not in (BF16, FP16):
        pytest.skip("float32 sums are exact here anyway")
    make = Maker(dtype, backend.device)
    x = torch.ones(33, dtype=dtype, device=backend.device)
    history = [torch.full_like(x, 2**-12) for _ in range(60)]
    got = x.clone()
    backend.call("forecast_residual_", got, history, torch.ones(1), [])
    assert torch.equal(got, (x.float() + 60 * 2**-12).to(dtype))
    packed = torch.stack(history).view(60, 1, 33)
    got = x.clone()
    backend.call("forecast_residual_packed_", got, packed, torch.ones(1), make(0))
    assert torch.equal(got, (x.float() + 60 * 2**-12).to(dtype))


# ---- commit_ ----


def check_commit(history, stats, expected, k):
    for slot, want in zip(history, expected[:k], strict=True):
        assert_close(slot, want)
    for value, row in zip(stats if stats is not None else [], expected[k:], strict=True):
        want = oracle.sum_of_squares(row)
        assert_close(value, Expected(want.value, 4 * want.magnitude))


@pytest.mark.parametrize(("k", "n_stats"), [(1, 0), (2, 1), (3, 0), (3, 3), (8, 8), (5, 2), (1, 8)])
def test_commit(backend, dtype, k, n_stats):
    for shape in shapes(backend):
        make = Maker(dtype, backend.device, seed=k)
        feature, history = make(*shape), make.many(k, *shape)
        transition = make.small(k + n_stats, k + 1, on_device=k % 2 == 0)
        transition[0, k - 1] = 0
        stats = make.small(n_stats, on_device=True) if n_stats else None
        expected = oracle.commit(feature, history, transition)
        kept = feature.clone()
        backend.call("commit_", feature, history, transition, stats)
        assert same_bits(feature, kept)
        check_commit(history, stats, expected, k)


@pytest.mark.parametrize("history_dtype", [FP32, BF16, FP16], ids=lambda d: str(d)[6:])
def test_commit_with_history_of_another_dtype(backend, dtype, history_dtype):
    make = Maker(dtype, backend.device)
    feature = make(3, 33)
    history = [make(3, 33, dtype=history_dtype) for _ in range(3)]
    transition, stats = make.small(5, 4), make.small(2, on_device=True)
    expected = oracle.commit(feature, history, transition)
    backend.call("commit_", feature, history, transition, stats)
    check_commit(history, stats, expected, 3)


@pytest.mark.parametrize("n_stats", [0, 2])
def test_commit_list(backend, dtype, n_stats):
    make = Maker(dtype, backend.device)
    all_shapes = [(3, 5), (0,), (1,), (2, 3, 4), (1025,)]
    features = [make(*s) for s in all_shapes]
    history = [make(*s) for s in all_shapes for _ in range(3)]
    transition = make.small(3 + n_stats, 4)
    stats = make.small(len(features), n_stats, on_device=True) if n_stats else None
    expected = [
        oracle.commit(f, history[3 * i : 3 * i + 3], transition) for i, f in enumerate(features)
    ]
    backend.call("commit_list_", features, history, transition, stats)
    for i, want in enumerate(expected):
        row = stats[i] if stats is not None else None
        check_commit(history[3 * i : 3 * i + 3], row, want, 3)


# ---- addresses ----


@pytest.mark.parametrize("offset", [0, 1, 3, 8])
@pytest.mark.parametrize("shape", [(1,), (2, 3, 33), (1030,)])
def test_unaligned_slices_and_their_neighbours(backend, dtype, offset, shape):
    """Views at any address give the same bits, and nothing outside of them is written."""
    make = Maker(dtype, backend.device)
    x, feature, *history = make.many(5, *shape)
    weights, transition = make.small(3), make.small(4, 4)

    def run(x, feature, history):
        stats = torch.zeros(1, device=backend.device)
        backend.call("forecast_out", history, weights, feature)
        backend.call("forecast_residual_", x, history, weights, [])
        backend.call("commit_", x, history, transition, stats)
        backend.call("forecast_calibrate_rotate", history[0], history[1], x, torch.ones(2))
        return stats

    plain = clones([x, feature, *history])
    # Slots at different offsets: no common alignment for the kernel to rely on.
    guarded = [Guarded(t, offset * (i + 1) % 9) for i, t in enumerate([x, feature, *history])]
    stats = run(plain[0], plain[1], plain[2:])
    views = [g.tensor for g in guarded]
    stats_of_views = run(views[0], views[1], views[2:])
    assert all(map(same_bits, views, plain))
    assert all(g.guards_intact() for g in guarded)
    if backend.device == "cuda":  # the order of a sum depends on the width of the loads
        torch.testing.assert_close(stats, stats_of_views, rtol=1e-6, atol=0.0)
    else:
        assert same_bits(stats, stats_of_views)
