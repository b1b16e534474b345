// Launchers for tensors in the memory of the current CUDA device. All are asynchronous on `stream`
// (a cudaStream_t), allocate nothing, never synchronise, and may be captured into a graph. A launch
// that CUDA refuses throws std::runtime_error. Results are the same from run to run.
#pragma once

#include <cstddef>

#include "foca/args.h"

namespace foca::cuda {

// A few float32 values: on the host, where they are copied into the launch, or on the device, where
// the kernel reads them, so that a captured graph sees what is in memory when it is replayed.
struct Scalars {
  const float* data;
  bool on_host;
};

// steps: [h, h_prev].
void launch_forecast_calibrate(const CalibrateArgs& args, Scalars steps, void* stream);

// weights: [k].
void launch_forecast(const ForecastArgs& args, Scalars weights, void* stream);

// weights: [k] or [features, k]. features * k <= kMaxTerms.
void launch_forecast_residual(const ForecastResidualArgs& args, Scalars weights, void* stream);

// transition: [k + stat_rows, k + 1]. workspace: device memory of commit_workspace_size(args)
// bytes, aligned to 8, used until the launch has run on the stream; may be null when that is 0.
void launch_commit(const CommitArgs& args, Scalars transition, void* workspace, void* stream);
std::size_t commit_workspace_size(const CommitArgs& args);

}  // namespace foca::cuda
