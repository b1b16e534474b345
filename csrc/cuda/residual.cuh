// forecast_residual: the collapsed skip, one launch for a whole network. This header holds the
// kernel; residual_*.cu instantiate it for one type of x each, so that they compile side by side.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/vec.cuh"
#include "foca/math.h"

namespace foca::cuda {

struct NoGate {};

// kTerms: capacity for features * k. Small networks get a smaller argument block, which is cheaper
// to launch.
template <int kTerms>
struct ResidualParams {
  void* x;  // X [batch, rows, cols]
  std::int64_t numel, rows, cols;
  std::int64_t gate_batch_stride, gate_row_stride;
  int features, k;
  int weight_stride;                           // k, or 0 when all features share their weights
  ScalarType x_type, history_type, gate_type;  // read by the kernel for unaligned tensors only
  const void* gates[kMaxFeatures];             // G
  const void* history[kTerms];                 // H [batch, rows, cols], feature-major
  ScalarParams<kTerms> weights;
};

// Where the gates of element i (and of the vector that starts there) are, in elements.
template <int kTerms>
__device__ __forceinline__ std::int64_t gate_offset(const ResidualParams<kTerms>& params,
                                                    std::int64_t i) {
  if (params.gate_row_stride == params.cols) return i;  // as large as x
  if (params.numel <= 0xffffffff) {                     // 32-bit division is several times cheaper
    const unsigned index = static_cast<unsigned>(i), cols = static_cast<unsigned>(params.cols);
    const unsigned row = index / cols;
    const unsigned batch = row / static_cast<unsigned>(params.rows);
    return batch * params.gate_batch_stride + (index - row * cols);
  }
  const std::int64_t row = i / params.cols;
  return row / params.rows * params.gate_batch_stride + (i - row * params.cols);
}

template <typename X, typename H, typename G, int kVec, int kK, int kTerms>
__device__ __forceinline__ void residual_at(const ResidualParams<kTerms>& params, std::int64_t i) {
  constexpr bool kGated = !std::is_same<G, NoGate>::value;
  float acc[kVec];
  load<X, kVec>(acc, static_cast<const X*>(params.x) + i);
  [[maybe_unused]] std::int64_t gate_at = 0;
  if constexpr (kGated) gate_at = gate_offset(params, i);
#pragma unroll 1
  for (int l = 0; l < params.features; ++l) {
    const int first = l * params.k, first_weight = l * params.weight_stride;
    float weights[kK];
    bool used = false;
#pragma unroll
    for (int p = 0; p < kK; ++p) {
      weights[p] = p < params.k ? params.weights[first_weight + p] : 0.0f;
      used = used || weights[p] != 0.0f;
    }
    if (!used) continue;
    // All loads of a feature are under way before the first is waited for.
    Words<H, kVec> raw[kK];
#pragma unroll
    for (int p = 0; p < kK; ++p) {
      if (weights[p] == 0.0f) continue;
      load_words(raw[p], static_cast<const H*>(params.history[first + p]) + i);
    }
    [[maybe_unused]] float gate[kVec];
    if constexpr (kGated) load<G, kVec>(gate, static_cast<const G*>(params.gates[l]) + gate_at);
    float feature[kVec] = {};
#pragma unroll
    for (int p = 0; p < kK; ++p) {
      if (weights[p] == 0.0f) continue;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        feature[j] = math::add_term(feature[j], weights[p], to_float(raw[p].elements[j]));
      }
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      if constexpr (kGated) {
        acc[j] = math::add_gated(acc[j], gate[j], feature[j]);
      } else {
        acc[j] += feature[j];
      }
    }
  }
  store<X, kVec>(static_cast<X*>(params.x) + i, acc);
}

// x += sum_l gate_l sum_p w_lp h_lp in float32, zero weights skipped, one rounding.
// Aliasing: x overlaps nothing. Traffic per element: x read and written once, one read for each
// non-zero weight, and the gates, which mostly stay in cache unless they are as large as x.
// Two blocks per multiprocessor: left to itself, ptxas (CUDA 13.0) stops at 64 registers and
// spills.
template <typename X, typename H, typename G, int kVec, int kK, int kTerms>
__global__ void __launch_bounds__(kThreads, 2)
    forecast_residual_kernel(const __grid_constant__ ResidualParams<kTerms> params) {
  const std::int64_t n_vec = params.numel / kVec;
  for (std::int64_t i = thread_index(); i < n_vec; i += thread_count()) {
    residual_at<X, H, G, kVec, kK>(params, i * kVec);
  }
  const std::int64_t tail = n_vec * kVec + thread_index();
  if (tail < params.numel) residual_at<X, H, G, 1, kK>(params, tail);
}

constexpr int kFewTerms = 256;

template <typename X, typename H, typename G, int kTerms>
void launch_residual_vec(const ResidualParams<kTerms>& params, cudaStream_t stream) {
  constexpr int kVec = vec_size<X, H>();
  const int grid = grid_size((params.numel + kVec - 1) / kVec);
  const auto run = [&](auto count) {
    launch_kernel("forecast_residual_kernel",
                  forecast_residual_kernel<X, H, G, kVec, decltype(count)::value, kTerms>, grid,
                  stream, params);
  };
  if constexpr (kTerms == kFewTerms) {
    with_count(params.k, run);
  } else if (params.k <= 4) {  // fewer variants for what is rare
    run(Int<4>{});
  } else {
    run(Int<kMaxHistory>{});
  }
}

// Aligned tensors with x of type X; one instantiation per file.
template <typename X, int kTerms>
void launch_residual(const ResidualParams<kTerms>& params, bool gated, cudaStream_t stream) {
  with_type(params.history_type, [&](auto history) {
    using H = typename decltype(history)::type;
    if (!gated) {
      launch_residual_vec<X, H, NoGate>(params, stream);
    } else if (params.gate_type == ScalarType::kFloat32) {
      launch_residual_vec<X, H, float>(params, stream);
    } else {
      launch_residual_vec<X, H, X>(params, stream);
    }
  });
}

#define FOCA_DECLARE_RESIDUAL(prefix, X)                                                         \
  prefix template void launch_residual<X>(const ResidualParams<kFewTerms>&, bool, cudaStream_t); \
  prefix template void launch_residual<X>(const ResidualParams<kMaxTerms>&, bool, cudaStream_t);
FOCA_DECLARE_RESIDUAL(extern, float)
FOCA_DECLARE_RESIDUAL(extern, __half)
FOCA_DECLARE_RESIDUAL(extern, __nv_bfloat16)

}  // namespace foca::cuda
