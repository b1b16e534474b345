"""Triton kernels: the arithmetic of the operators between load and store.

All arithmetic is float32, in the order of the C++ kernels and without fused multiply-adds (the
launchers pass ``enable_fp_fusion=False``), with one rounding when a value is stored.

Common arguments. Pointers are to row-major tensors of ``n_elements`` elements; several tensors of
one role come as a tuple of pointers. ``weights``, ``steps`` and ``transition`` are float32: a tuple
of numbers when BY_VALUE (they stood on the host), else a pointer that the kernel reads, so that a
captured CUDA graph sees new values. Offsets are 64-bit.

A term whose weight is zero is never read: its load is masked off as a whole (``live``), which costs
no bandwidth and keeps the NaN of an unset slot out. (A masked-off value is 0; 0 * 0 adds nothing.)
"""

# mypy: disable-error-code="assignment"
# (Unrolled loops rebind a name to tuples of another length, which is Triton's way to hold rows.)

import triton
import triton.language as tl
from triton import knobs

# The interpreter truncates float32 to bfloat16 instead of rounding; the compiled kernels do not.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def round_to(value, dtype: tl.constexpr):
    """float32 to ``dtype``, round to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        # Rounding up would carry a NaN's mantissa into the exponent: keep it a quiet NaN.
        rounded = tl.where(value == value, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)


@triton.jit
def store(pointer, value, mask):
    tl.store(pointer, round_to(value, pointer.dtype.element_ty), mask=mask)


@triton.jit
def scalar(source, i: tl.constexpr, BY_VALUE: tl.constexpr):
    """Entry i of a small float32 array."""
    if BY_VALUE:
        return source[i]
    else:
        return tl.load(source + i)


@triton.jit
def live(weight, n_elements, otherwise):
    """How many elements a term with this weight reads: all, or ``otherwise`` if the weight is 0.

    A count rather than a flag, since the interpreter mistypes flags that come from floats.
    """
    return tl.where(weight != 0, n_elements, otherwise)


@triton.jit
def block_offsets(n_elements, BLOCK_SIZE: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    return offsets, offsets < n_elements


@triton.jit
def forecast_calibrate_kernel(
    f_k_ptr,
    f_km1_ptr,
    d_anchor_ptr,
    steps,  # [h, h_prev]
    n_elements,
    BY_VALUE: tl.constexpr,
    ROTATE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """F_{k+1} = F_k + h/2 (D_anchor + (F_k - F_{k-1}) / h_prev); derivation: docs/method.md.

    Written over f_km1; with ROTATE f_km1 <- f_k and f_k <- F_{k+1}. Per element reads 3 values and
    writes 1 (ROTATE: 2). No two tensors may overlap.
    """
    offsets, mask = block_offsets(n_elements, BLOCK_SIZE)
    half_h = 0.5 * scalar(steps, 0, BY_VALUE)
    # tl.div_rn rounds as IEEE 754 says; the `/` operator may be off in the last bits on a GPU.
    inv_h_prev = tl.div_rn(1.0, scalar(steps, 1, BY_VALUE))
    f_k_stored = tl.load(f_k_ptr + offsets, mask=mask)
    f_k = f_k_stored.to(tl.float32)
    f_km1 = tl.load(f_km1_ptr + offsets, mask=mask).to(tl.float32)
    d_anchor = tl.load(d_anchor_ptr + offsets, mask=mask).to(tl.float32)
    result = f_k + half_h * (d_anchor + (f_k - f_km1) * inv_h_prev)
    if ROTATE:
        tl.store(f_km1_ptr + offsets, f_k_stored, mask=mask)
        store(f_k_ptr + offsets, result, mask)
    else:
        store(f_km1_ptr + offsets, result, mask)


@triton.jit
def forecast_kernel(
    history,  # K pointers
    weights,  # [K]
    out_ptr,
    n_elements,
    K: tl.constexpr,
    BY_VALUE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """out = sum_p w_p h_p. Reads one value per non-zero weight and writes one, per element."""
    offsets, mask = block_offsets(n_elements, BLOCK_SIZE)
    acc = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
    for p in tl.static_range(K):
        weight = scalar(weights, p, BY_VALUE)
        value = tl.load(history[p] + offsets, mask=offsets < live(weight, n_elements, 0), other=0.0)
        acc += weight * value.to(tl.float32)
    store(out_ptr + offsets, acc, mask)


@triton.jit
def forecast_residual_kernel(
    x_ptr,  # what is added to: x, or the float32 sum of the launches before
    out_ptr,  # where the sum goes: x, or float32 scratch for the next launch
    history,  # L * K pointers, feature-major
    weights,  # [K] or, with PER_FEATURE, [L, K]
    gates,  # L pointers, or none
    gate_period,  # elements that share one row of a gate
    n_columns,  # D
    n_elements,
    L: tl.constexpr,
    K: tl.constexpr,
    BY_VALUE: tl.constexpr,
    PER_FEATURE: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """out = x + sum_l gate_l sum_p w[l,p] h[l,p] for a few features, unrolled.

    Element i is gated by entry (i / gate_period) * D + i % D of the gate: a period of n_elements is
    one row for all, S * D one row per sample, D a gate as large as x. Per element: reads x, one
    value per non-zero weight and the gates; writes one value. out may be x itself.
    """
    offsets, mask = block_offsets(n_elements, BLOCK_SIZE)
    if GATED:
        gate_offsets = (offsets // gate_period) * n_columns + offsets % n_columns
    acc = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
    for i in tl.static_range(L):
        feature = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
        used = 0
        for p in tl.static_range(K):
            weight = scalar(weights, i * K + p if PER_FEATURE else p, BY_VALUE)
            mask_p = offsets < live(weight, n_elements, 0)
            value = tl.load(history[i * K + p] + offsets, mask=mask_p, other=0.0)
            feature += weight * value.to(tl.float32)
            used = live(weight, n_elements, used)
        if GATED:
            gate = tl.load(gates[i] + gate_offsets, mask=offsets < used, other=0.0)
            feature = gate.to(tl.float32) * feature
        acc = tl.where(used > 0, acc + feature, acc)
    store(out_ptr + offsets, acc, mask)


@triton.jit
def forecast_residual_packed_kernel(
    x_ptr,
    history_ptr,  # [L, K, n_elements]
    weights_ptr,  # float32 [K], or [L, K] with weight_stride K
    gates_ptr,  # [L, rows, D]
    weight_stride,  # 0 or K
    gate_stride,  # rows * D
    gate_period,
    n_columns,
    n_elements,
    n_features,
    K: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """As forecast_residual_kernel on one arena, in one launch for any number of features."""
    offsets, mask = block_offsets(n_elements, BLOCK_SIZE)
    if GATED:
        gate_ptrs = gates_ptr + (offsets // gate_period) * n_columns + offsets % n_columns
    acc = tl.load(x_ptr + offsets, mask=mask).to(tl.float32)
    slot_ptrs = history_ptr + offsets
    for i in range(n_features):
        feature = tl.zeros([BLOCK_SIZE], dtype=tl.float32)
        used = 0
        for p in tl.static_range(K):
            weight = tl.load(weights_ptr + i * weight_stride + p)
            mask_p = offsets < live(weight, n_elements, 0)
            value = tl.load(slot_ptrs, mask=mask_p, other=0.0)
            feature += weight * value.to(tl.float32)
            used = live(weight, n_elements, used)
            slot_ptrs += n_elements
        if GATED:
            gate = tl.load(gate_ptrs, mask=offsets < used, other=0.0)
            feature = gate.to(tl.float32) * feature
            gate_ptrs += gate_stride
        acc = tl.where(used > 0, acc + feature, acc)
    store(x_ptr + offsets, acc, mask)


@triton.jit
def commit_kernel(
    feature_ptr,
    history,  # K pointers
    transition,  # [K + R, K + 1]
    partial_ptr,  # float32 [R, programs]: each program's sums of squares
    n_elements,
    K: tl.constexpr,
    R: tl.constexpr,
    BY_VALUE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """history_p <- sum_q M[p,q] v_q, v = (old history, feature); rows K.. are squared and summed.

    In place in one pass: every column is read before any row is written. A program owns its
    elements alone. Reads up to K + 1 values per element and writes K.
    """
    offsets, mask = block_offsets(n_elements, BLOCK_SIZE)
    rows = ()  # tuples grow by `+`: Triton has no starred expressions
    for _ in tl.static_range(K + R):
        rows = rows + (tl.zeros([BLOCK_SIZE], dtype=tl.float32),)  # noqa: RUF005
    for q in tl.static_range(K + 1):
        used = 0
        for p in tl.static_range(K + R):
            used = live(scalar(transition, p * (K + 1) + q, BY_VALUE), n_elements, used)
        if q < K:
            value = tl.load(history[q] + offsets, mask=offsets < used, other=0.0).to(tl.float32)
        else:
            value = tl.load(feature_ptr + offsets, mask=offsets < used, other=0.0).to(tl.float32)
        updated = ()
        for p in tl.static_range(K + R):
            weight = scalar(transition, p * (K + 1) + q, BY_VALUE)
            row = tl.where(weight != 0, rows[p] + weight * value, rows[p])
            updated = updated + (row,)  # noqa: RUF005
        rows = updated
    for p in tl.static_range(K):
        store(history[p] + offsets, rows[p], mask)
    for r in tl.static_range(R):
        square = tl.where(mask, rows[K + r] * rows[K + r], 0.0)
        slot = r * tl.num_programs(0).to(tl.int64) + tl.program_id(0)
        tl.store(partial_ptr + slot, tl.sum(square, axis=0))


@triton.jit
def sum_partials_kernel(partial_ptr, stats_ptr, n_partials, BLOCK_SIZE: tl.constexpr):
    """stats[r] = sum(partial[r, :]) in float64, always in the same order: one program per row."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK_SIZE)
    acc = tl.zeros([BLOCK_SIZE], dtype=tl.float64)
    for start in range(0, n_partials, BLOCK_SIZE):
        at = start + lanes
        part = tl.load(partial_ptr + row * n_partials + at, mask=at < n_partials, other=0.0)
        acc += part.to(tl.float64)
    tl.store(stats_ptr + row, tl.sum(acc, axis=0).to(tl.float32))


@triton.jit
def write_values_kernel(out_ptr, values, N: tl.constexpr):
    """out[i] = values[i]: brings host numbers to the device without a copy and without a sync."""
    for i in tl.static_range(N):
        tl.store(out_ptr + i, values[i])
