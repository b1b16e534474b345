// commit: the kernel. commit_*.cu instantiate it for one type of history each, so that they compile
// side by side.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/vec.cuh"
#include "foca/math.h"

namespace foca::cuda {

constexpr int kMaxRows = kMaxHistory + kMaxStats;
constexpr int kMaxColumns = kMaxHistory + 1;

// kFeatures: capacity. One feature gets a small argument block, which is cheaper to launch.
template <int kFeatures>
struct CommitParams {
  const void* features[kFeatures];         // feature_type [numel[t]]
  void* history[kFeatures * kMaxHistory];  // H [numel[t]], feature-major with k per feature
  std::int64_t numel[kFeatures];
  double* partial;  // [count, stat_rows, gridDim.x]
  int k, stat_rows;
  ScalarType feature_type;
  ScalarParams<kMaxRows * kMaxColumns> transition;  // [k + stat_rows, k + 1]
};

// The feature may be of another type than the history; this is one load out of k + 1.
template <int kVec>
__device__ __forceinline__ void load_feature(float (&dst)[kVec], const void* data, ScalarType type,
                                             std::int64_t i) {
  switch (type) {
    case ScalarType::kFloat32:
      return load<float, kVec>(dst, static_cast<const float*>(data) + i);
    case ScalarType::kFloat16:
      return load<__half, kVec>(dst, static_cast<const __half*>(data) + i);
    default:
      return load<__nv_bfloat16, kVec>(dst, static_cast<const __nv_bfloat16*>(data) + i);
  }
}

// One row of the transition over the old values; a zero weight leaves its value, perhaps NaN, out.
template <int kVec, int kK>
__device__ __forceinline__ void row_values(float (&dst)[kVec], const float* row,
                                           const float (&old)[kK + 1][kVec]) {
#pragma unroll
  for (int j = 0; j < kVec; ++j) dst[j] = 0.0f;
#pragma unroll
  for (int q = 0; q <= kK; ++q) {
    const float weight = row[q];
    if (weight == 0.0f) continue;
#pragma unroll
    for (int j = 0; j < kVec; ++j) dst[j] = math::add_term(dst[j], weight, old[q][j]);
  }
}

template <typename H, int kVec, int kK, int kFeatures>
__device__ __forceinline__ void commit_at(const CommitParams<kFeatures>& params,
                                          const float (&transition)[kMaxRows][kK + 1],
                                          unsigned used, float (&sums)[kMaxStats], std::int64_t i) {
  const int t = blockIdx.y;
  const auto history = [&](int p) { return static_cast<H*>(params.history[t * params.k + p]) + i; };
  Words<H, kVec> raw[kK];
  float old[kK + 1][kVec] = {};
#pragma unroll
  for (int q = 0; q < kK; ++q) {
    if (used >> q & 1) load_words(raw[q], static_cast<const H*>(history(q)));
  }
  if (used >> kK & 1) load_feature<kVec>(old[kK], params.features[t], params.feature_type, i);
#pragma unroll
  for (int q = 0; q < kK; ++q) {
    if ((used >> q & 1) == 0) continue;
#pragma unroll
    for (int j = 0; j < kVec; ++j) old[q][j] = to_float(raw[q].elements[j]);
  }
#pragma unroll
  for (int p = 0; p < kK; ++p) {
    if (p >= params.k) break;
    float value[kVec];
    row_values<kVec, kK>(value, transition[p], old);
    store<H, kVec>(history(p), value);
  }
#pragma unroll
  for (int r = 0; r < kMaxStats; ++r) {
    if (r >= params.stat_rows) break;
    float value[kVec];
    row_values<kVec, kK>(value, transition[kMaxHistory + r], old);
#pragma unroll
    for (int j = 0; j < kVec; ++j) sums[r] += value[j] * value[j];
  }
}

// Sum over the block, in a fixed order; thread 0 has the result.
__device__ __forceinline__ double block_sum(double value, double* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, offset);
  }
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0.0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kThreads / 32; ++warp) total += scratch[warp];
  }
  __syncthreads();
  return total;
}

// h_p <- sum_q M_pq v_q with v = (old h_0..h_{K-1}, feature), in float32, zero weights skipped, one
// rounding; the squares of rows K.. are summed per thread in float32 and per block in double.
// blockIdx.y is the feature.
// Aliasing: every h_p is input and output at the same element; feature overlaps nothing. Traffic
// per element: the used columns read once, K writes.
template <typename H, int kVec, int kK, int kFeatures>
__global__ void __launch_bounds__(kThreads)
    commit_kernel(const __grid_constant__ CommitParams<kFeatures> params) {
  // Rows 0..7 are the history's, rows 8.. the statistics'; column kK is the feature's.
  __shared__ float transition[kMaxRows][kK + 1];
  __shared__ unsigned used;
  if (threadIdx.x == 0) used = 0;
  __syncthreads();
  if (threadIdx.x < kMaxRows * (kK + 1)) {
    const int slot = threadIdx.x / (kK + 1), q = threadIdx.x % (kK + 1);
    const int row = slot < kMaxHistory ? slot : params.k + slot - kMaxHistory;
    const int column = q < kK ? q : params.k;
    const bool exists =
        (slot < kMaxHistory ? slot < params.k : slot - kMaxHistory < params.stat_rows) &&
        (q < params.k || q == kK);
    const float weight = exists ? params.transition[row * (params.k + 1) + column] : 0.0f;
    transition[slot][q] = weight;
    if (weight != 0.0f) atomicOr(&used, 1u << q);
  }
  __syncthreads();

  const std::int64_t numel = params.numel[blockIdx.y];
  const std::int64_t n_vec = numel / kVec;
  const unsigned columns = used;
  float sums[kMaxStats] = {};
  for (std::int64_t i = thread_index(); i < n_vec; i += thread_count()) {
    commit_at<H, kVec, kK>(params, transition, columns, sums, i * kVec);
  }
  if constexpr (kVec > 1) {
    const std::int64_t tail = n_vec * kVec + thread_index();
    if (tail < numel) commit_at<H, 1, kK>(params, transition, columns, sums, tail);
  }

  __shared__ double scratch[kThreads / 32];
#pragma unroll
  for (int r = 0; r < kMaxStats; ++r) {
    if (r >= params.stat_rows) break;
    const double total = block_sum(sums[r], scratch);
    if (threadIdx.x == 0) {
      const std::int64_t sum = static_cast<std::int64_t>(blockIdx.y) * params.stat_rows + r;
      params.partial[sum * gridDim.x + blockIdx.x] = total;
    }
  }
}

// Aligned or not; one instantiation per file.
template <typename H, int kFeatures>
void launch_commit_kernel(const CommitParams<kFeatures>& params, bool aligned, dim3 grid,
                          cudaStream_t stream) {
  if (aligned) {
    with_count(params.k, [&](auto count) {
      launch_kernel("commit_kernel",
                    commit_kernel<H, vec_size<H>(), decltype(count)::value, kFeatures>, grid,
                    stream, params);
    });
  } else {
    launch_kernel("commit_kernel", commit_kernel<H, 1, kMaxHistory, kFeatures>, grid, stream,
                  params);
  }
}

#define FOCA_DECLARE_COMMIT(prefix, H)                                                            \
  prefix template void launch_commit_kernel<H>(const CommitParams<1>&, bool, dim3, cudaStream_t); \
  prefix template void launch_commit_kernel<H>(const CommitParams<kMaxFeatures>&, bool, dim3,     \
                                               cudaStream_t);
FOCA_DECLARE_COMMIT(extern, float)
FOCA_DECLARE_COMMIT(extern, __half)
FOCA_DECLARE_COMMIT(extern, __nv_bfloat16)

}  // namespace foca::cuda
