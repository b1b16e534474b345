// Registers the CUDA kernels for the operators of foca_kernels/schemas.py. No CUDA header and no
// CUDA build of torch is needed to compile this: the stream comes from torch's stable ABI.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include "foca/cuda.h"
#include "ops_common.h"

// Weak, because a torch without CUDA does not have it; there the library loads and no op gets here.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(std::int32_t device_index, void** stream);

namespace foca::ops {
namespace {

void* current_stream(std::int32_t device_index) {
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    throw std::runtime_error("foca: this torch was built without CUDA");
  }
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return stream;
}

using torch::stable::accelerator::DeviceGuard;

cuda::Scalars scalars(const Small& small) { return {small.data, small.on_host}; }

void run(const CheckedCalibrate& checked) {
  const DeviceGuard guard(checked.device_index);
  cuda::launch_forecast_calibrate(checked.args, scalars(checked.steps),
                                  current_stream(checked.device_index));
}
void run(const CheckedForecast& checked) {
  const DeviceGuard guard(checked.device_index);
  cuda::launch_forecast(checked.args, scalars(checked.weights),
                        current_stream(checked.device_index));
}
void run(const CheckedForecastResidual& checked) {
  const DeviceGuard guard(checked.device_index);
  cuda::launch_forecast_residual(checked.args, scalars(checked.weights),
                                 current_stream(checked.device_index));
}
void run(const CheckedCommit& checked) {
  const DeviceGuard guard(checked.device_index);
  // From torch's allocator, so that it is safe to free before the kernels have run on this stream.
  std::optional<Tensor> workspace;
  const std::int64_t size = static_cast<std::int64_t>(cuda::commit_workspace_size(checked.args));
  if (size > 0) {
    const std::int64_t stride = 1;
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_uint8(),
                                                    aoti_torch_device_type_cuda(),
                                                    checked.device_index, &handle));
    workspace.emplace(handle);
  }
  cuda::launch_commit(checked.args, scalars(checked.transition),
                      workspace ? workspace->data_ptr() : nullptr,
                      current_stream(checked.device_index));
}

}  // namespace
}  // namespace foca::ops

#include "ops_overloads.h"

STABLE_TORCH_LIBRARY_IMPL(foca, CUDA, m) { foca::ops::register_overloads(m); }
