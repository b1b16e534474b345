// The host side that all launchers share.
#include <cuda_runtime.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "cuda/launch.cuh"

namespace foca::cuda {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here, and not once more by whoever asks next
  std::string text = "foca: " + std::string(what) + " failed: " + cudaGetErrorName(error) + ": " +
                     cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice) {
    text +=
        ": the kernels were not compiled for this GPU: build with FOCA_CUDA_ARCHS set to its "
        "compute capability (80 or more), or set FOCA_BACKEND=triton or reference";
  }
  throw std::runtime_error(text);
}

int sm_count() {
  constexpr int kMaxDevices = 64;
  static std::atomic<int> counts[kMaxDevices];
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  int count = device < kMaxDevices ? counts[device].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    if (device < kMaxDevices) counts[device].store(count, std::memory_order_relaxed);
  }
  return count;
}

bool is_aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

}  // namespace foca::cuda
