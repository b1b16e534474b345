// forecast_calibrate: the paper's step, for one feature or many in one launch.
#include "cuda/launch.cuh"
#include "cuda/vec.cuh"
#include "foca/math.h"

namespace foca::cuda {
namespace {

template <int kCapacity>
struct CalibrateParams {
  CalibrateTensors tensors[kCapacity];
  ScalarParams<2> steps;  // [h, h_prev]
};

template <typename T, int kVec, bool kRotate>
__device__ __forceinline__ void calibrate_at(const CalibrateTensors& tensors,
                                             math::CalibrateScalars scalars, std::int64_t i) {
  T* const f_k = static_cast<T*>(tensors.f_k) + i;
  T* const f_km1 = static_cast<T*>(tensors.f_km1) + i;
  Words<T, kVec> now, before, slope;
  load_words(now, f_k);
  load_words(before, f_km1);
  load_words(slope, static_cast<const T*>(tensors.d_anchor) + i);
  float current[kVec], next[kVec];
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    current[j] = to_float(now.elements[j]);
    next[j] = math::calibrate(current[j], to_float(before.elements[j]), to_float(slope.elements[j]),
                              scalars);
  }
  if constexpr (kRotate) {
    store<T, kVec>(f_km1, current);
    store<T, kVec>(f_k, next);
  } else {
    store<T, kVec>(f_km1, next);
  }
}

// F_{k+1} = F_k + h/2 (D_anchor + (F_k - F_{k-1}) / h_prev) in float32, into f_km1; rotating, F_k
// goes into f_km1 and F_{k+1} into f_k. blockIdx.y is the feature. Aliasing: none. Traffic per
// element: 3 reads, 1 write (2 when rotating).
template <typename T, int kVec, bool kRotate, int kCapacity>
__global__ void __launch_bounds__(kThreads)
    forecast_calibrate_kernel(const __grid_constant__ CalibrateParams<kCapacity> params) {
  const CalibrateTensors& tensors = params.tensors[blockIdx.y];
  const math::CalibrateScalars scalars = math::calibrate_scalars(params.steps[0], params.steps[1]);
  const std::int64_t n_vec = tensors.numel / kVec;
  for (std::int64_t i = thread_index(); i < n_vec; i += thread_count()) {
    calibrate_at<T, kVec, kRotate>(tensors, scalars, i * kVec);
  }
  if constexpr (kVec > 1) {
    const std::int64_t tail = n_vec * kVec + thread_index();
    if (tail < tensors.numel) calibrate_at<T, 1, kRotate>(tensors, scalars, tail);
  }
}

// At most kCapacity features of `args`, from `first` on.
template <int kCapacity>
void launch(const CalibrateArgs& args, int first, Scalars steps, cudaStream_t stream) {
  CalibrateParams<kCapacity> params = {};
  params.steps.set(steps, 2);
  const int count = std::min(kCapacity, args.count - first);
  std::int64_t largest = 0;
  bool aligned = true;
  for (int t = 0; t < count; ++t) {
    const CalibrateTensors& tensors = args.tensors[first + t];
    params.tensors[t] = tensors;
    largest = std::max(largest, tensors.numel);
    aligned = aligned && is_aligned(tensors.f_k) && is_aligned(tensors.f_km1) &&
              is_aligned(tensors.d_anchor);
  }
  if (largest == 0) return;
  with_type(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kVec = vec_size<T>();
    const auto run = [&](auto vec, auto rotate) {
      const dim3 grid(grid_size((largest + vec.value - 1) / vec.value), count);
      launch_kernel("forecast_calibrate_kernel",
                    forecast_calibrate_kernel<T, decltype(vec)::value, decltype(rotate)::value != 0,
                                              kCapacity>,
                    grid, stream, params);
    };
    const auto run_vec = [&](auto rotate) {
      if (aligned) {
        run(Int<kVec>{}, rotate);
      } else {
        run(Int<1>{}, rotate);
      }
    };
    if constexpr (kCapacity == 1) {
      if (args.rotate) return run_vec(Int<1>{});
    }
    run_vec(Int<0>{});
  });
}

}  // namespace

void launch_forecast_calibrate(const CalibrateArgs& args, Scalars steps, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (args.count == 1 || args.rotate) {
    for (int t = 0; t < args.count; ++t) launch<1>(args, t, steps, s);
  } else {
    for (int t = 0; t < args.count; t += kMaxFeatures) launch<kMaxFeatures>(args, t, steps, s);
  }
}

}  // namespace foca::cuda
