// forecast_residual: the launcher, and the kernel for tensors that cannot be read 16 bytes at a
// time.
#include "cuda/residual.cuh"

namespace foca::cuda {
namespace {

__device__ __forceinline__ float load_one(const void* data, ScalarType type, std::int64_t i) {
  switch (type) {
    case ScalarType::kFloat32:
      return static_cast<const float*>(data)[i];
    case ScalarType::kFloat16:
      return to_float(static_cast<const __half*>(data)[i]);
    default:
      return to_float(static_cast<const __nv_bfloat16*>(data)[i]);
  }
}

// The same as forecast_residual_kernel, one element at a time and for all types: for unaligned
// views and for gates whose rows are not a whole number of vectors. Correct, not fast.
template <typename X>
__global__ void __launch_bounds__(kThreads)
    forecast_residual_scalar_kernel(const __grid_constant__ ResidualParams<kMaxTerms> params,
                                    bool gated) {
  X* const x = static_cast<X*>(params.x);
  for (std::int64_t i = thread_index(); i < params.numel; i += thread_count()) {
    float acc = to_float(x[i]);
    const std::int64_t gate_at = gated ? gate_offset(params, i) : 0;
    for (int l = 0; l < params.features; ++l) {
      float feature = 0.0f;
      bool used = false;
      for (int p = 0; p < params.k; ++p) {
        const float weight = params.weights[l * params.weight_stride + p];
        if (weight == 0.0f) continue;
        const float value = load_one(params.history[l * params.k + p], params.history_type, i);
        feature = math::add_term(feature, weight, value);
        used = true;
      }
      if (!used) continue;
      acc = gated ? math::add_gated(acc, load_one(params.gates[l], params.gate_type, gate_at),
                                    feature)
                  : acc + feature;
    }
    x[i] = from_float<X>(acc);
  }
}

template <int kTerms>
ResidualParams<kTerms> make_params(const ForecastResidualArgs& args, Scalars weights) {
  ResidualParams<kTerms> params = {};
  params.x = args.x;
  params.numel = args.batch * args.rows * args.cols;
  params.rows = args.rows;
  params.cols = args.cols;
  params.gate_batch_stride = args.gate_batch_stride;
  params.gate_row_stride = args.gate_row_stride;
  params.features = args.features;
  params.k = args.k;
  params.weight_stride = args.weights_per_feature ? args.k : 0;
  params.x_type = args.x_dtype;
  params.history_type = args.history_dtype;
  params.gate_type = args.gate_dtype;
  params.weights.set(weights, args.weights_per_feature ? args.features * args.k : args.k);
  std::copy_n(args.history, args.features * args.k, params.history);
  if (args.gates != nullptr) std::copy_n(args.gates, args.features, params.gates);
  return params;
}

// Every vector of x lies in one row of the gates, and everything starts on a 16-byte boundary.
bool can_vectorize(const ForecastResidualArgs& args) {
  const bool by_four =
      args.x_dtype == ScalarType::kFloat32 && args.history_dtype == ScalarType::kFloat32;
  const bool gated = args.gates != nullptr;
  const bool full_gates = args.gate_row_stride == args.cols;
  return is_aligned(args.x) &&
         std::all_of(args.history, args.history + args.features * args.k, is_aligned) &&
         (!gated || (std::all_of(args.gates, args.gates + args.features, is_aligned) &&
                     (full_gates || args.cols % (by_four ? 4 : 8) == 0)));
}

}  // namespace

void launch_forecast_residual(const ForecastResidualArgs& args, Scalars weights, void* stream) {
  if (args.batch * args.rows * args.cols == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const bool gated = args.gates != nullptr;
  with_type(args.x_dtype, [&](auto type) {
    using X = typename decltype(type)::type;
    if (!can_vectorize(args)) {
      const auto params = make_params<kMaxTerms>(args, weights);
      launch_kernel("forecast_residual_scalar_kernel", forecast_residual_scalar_kernel<X>,
                    grid_size(params.numel), s, params, gated);
    } else if (args.features * args.k <= kFewTerms) {
      launch_residual<X>(make_params<kFewTerms>(args, weights), gated, s);
    } else {
      launch_residual<X>(make_params<kMaxTerms>(args, weights), gated, s);
    }
  });
}

}  // namespace foca::cuda
