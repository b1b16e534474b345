// forecast: a weighted sum of one feature's history.
#include "cuda/launch.cuh"
#include "cuda/vec.cuh"
#include "foca/math.h"

namespace foca::cuda {
namespace {

struct ForecastParams {
  void* out;                         // T [numel]
  const void* history[kMaxHistory];  // T [numel] each
  ScalarParams<kMaxHistory> weights;
  std::int64_t numel;
  int k;
};

template <typename T, int kVec, int kK>
__device__ __forceinline__ void forecast_at(const ForecastParams& params,
                                            const float (&weights)[kK], std::int64_t i) {
  Words<T, kVec> raw[kK];
#pragma unroll
  for (int p = 0; p < kK; ++p) {
    if (weights[p] != 0.0f) load_words(raw[p], static_cast<const T*>(params.history[p]) + i);
  }
  float acc[kVec] = {};
#pragma unroll
  for (int p = 0; p < kK; ++p) {
    if (weights[p] == 0.0f) continue;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      acc[j] = math::add_term(acc[j], weights[p], to_float(raw[p].elements[j]));
    }
  }
  store<T, kVec>(static_cast<T*>(params.out) + i, acc);
}

// out = sum_p w_p h_p in float32, zero weights skipped, one rounding.
// Aliasing: out overlaps nothing. Traffic per element: one read for each non-zero weight, 1 write.
template <typename T, int kVec, int kK>
__global__ void __launch_bounds__(kThreads)
    forecast_kernel(const __grid_constant__ ForecastParams params) {
  float weights[kK];
#pragma unroll
  for (int p = 0; p < kK; ++p) weights[p] = p < params.k ? params.weights[p] : 0.0f;
  const std::int64_t n_vec = params.numel / kVec;
  for (std::int64_t i = thread_index(); i < n_vec; i += thread_count()) {
    forecast_at<T, kVec, kK>(params, weights, i * kVec);
  }
  if constexpr (kVec > 1) {
    const std::int64_t tail = n_vec * kVec + thread_index();
    if (tail < params.numel) forecast_at<T, 1, kK>(params, weights, tail);
  }
}

}  // namespace

void launch_forecast(const ForecastArgs& args, Scalars weights, void* stream) {
  if (args.numel == 0) return;
  ForecastParams params = {};
  params.out = args.out;
  params.numel = args.numel;
  params.k = args.k;
  params.weights.set(weights, args.k);
  bool aligned = is_aligned(args.out);
  for (int p = 0; p < args.k; ++p) {
    params.history[p] = args.history[p];
    aligned = aligned && is_aligned(args.history[p]);
  }
  with_type(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kVec = vec_size<T>();
    const auto s = static_cast<cudaStream_t>(stream);
    if (aligned) {
      with_count(args.k, [&](auto count) {
        launch_kernel("forecast_kernel", forecast_kernel<T, kVec, decltype(count)::value>,
                      grid_size((args.numel + kVec - 1) / kVec), s, params);
      });
    } else {
      launch_kernel("forecast_kernel", forecast_kernel<T, 1, kMaxHistory>, grid_size(args.numel), s,
                    params);
    }
  });
}

}  // namespace foca::cuda
