// What all launchers share: grid sizes, dispatch on types and counts, error checks, scalars.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "foca/cuda.h"

namespace foca::cuda {

constexpr int kThreads = 256;
// Enough blocks for several full waves; threads of larger tensors loop.
constexpr int kBlocksPerSm = 32;

int sm_count();                                   // of the current device
bool is_aligned(const void* pointer);             // to 16 bytes
void check(cudaError_t error, const char* what);  // throws std::runtime_error

inline int grid_size(std::int64_t work_items, int blocks_per_sm = kBlocksPerSm) {
  const std::int64_t blocks = (work_items + kThreads - 1) / kThreads;
  const std::int64_t limit = static_cast<std::int64_t>(sm_count()) * blocks_per_sm;
  return static_cast<int>(std::max<std::int64_t>(1, std::min(blocks, limit)));
}

// Launches a kernel of kThreads threads a block; throws if CUDA refuses it.
template <typename... Params, typename... Given>
void launch_kernel(const char* name, void (*kernel)(Params...), dim3 grid, cudaStream_t stream,
                   const Given&... given) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, given...), name);
}

// A few scalars as a kernel argument: values, or where to read them.
template <int kCount>
struct ScalarParams {
  const float* device;
  float host[kCount];

  void set(Scalars scalars, int count) {
    device = scalars.on_host ? nullptr : scalars.data;
    if (scalars.on_host) std::copy_n(scalars.data, count, host);
  }
  __device__ __forceinline__ float operator[](int i) const {
    return device != nullptr ? __ldg(device + i) : host[i];
  }
};

__device__ __forceinline__ std::int64_t thread_index() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ std::int64_t thread_count() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}

template <typename T>
struct Type {
  using type = T;
};

template <typename Body>
void with_type(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::kFloat32:
      return body(Type<float>{});
    case ScalarType::kFloat16:
      return body(Type<__half>{});
    case ScalarType::kBFloat16:
      return body(Type<__nv_bfloat16>{});
  }
}

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

// Calls body(Int<n>) for n <= 4 and body(Int<8>) above; kernels compare with the true count there.
template <typename Body>
void with_count(int n, const Body& body) {
  switch (n) {
    case 1:
      return body(Int<1>{});
    case 2:
      return body(Int<2>{});
    case 3:
      return body(Int<3>{});
    case 4:
      return body(Int<4>{});
    default:
      return body(Int<kMaxHistory>{});
  }
}

}  // namespace foca::cuda
