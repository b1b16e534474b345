// Registers the CPU kernels for the operators of foca_kernels/schemas.py. The library has no Python
// module in it: foca_kernels loads it with torch.ops.load_library.
#include <torch/csrc/stable/library.h>

#include "foca/cpu.h"
#include "ops_common.h"

namespace foca::ops {
namespace {

void parallel(std::int64_t size, std::int64_t grain, cpu::RangeBody body, void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, size, grain, body, context));
}

void run(const CheckedCalibrate& checked) {
  cpu::launch_forecast_calibrate(checked.args, checked.steps.data, parallel);
}
void run(const CheckedForecast& checked) {
  cpu::launch_forecast(checked.args, checked.weights.data, parallel);
}
void run(const CheckedForecastResidual& checked) {
  cpu::launch_forecast_residual(checked.args, checked.weights.data, parallel);
}
void run(const CheckedCommit& checked) {
  cpu::launch_commit(checked.args, checked.transition.data, parallel);
}

}  // namespace
}  // namespace foca::ops

#include "ops_overloads.h"

STABLE_TORCH_LIBRARY_IMPL(foca, CPU, m) { foca::ops::register_overloads(m); }
