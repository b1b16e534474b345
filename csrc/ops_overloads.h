// The ten overloads over `run(const Checked..&)`, which the including file (ops.cpp, ops_cuda.cpp)
// defines in namespace foca::ops: check, then launch.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "ops_common.h"

namespace foca::ops {
namespace {

void forecast_calibrate(const Tensor& f_k, const Tensor& f_km1, const Tensor& d_anchor, double h,
                        double h_prev) {
  CheckedCalibrate checked;
  check_forecast_calibrate(checked, f_k, f_km1, d_anchor, h, h_prev);
  run(checked);
}

void forecast_calibrate_tensor(const Tensor& f_k, const Tensor& f_km1, const Tensor& d_anchor,
                               const Tensor& steps) {
  CheckedCalibrate checked;
  check_forecast_calibrate(checked, f_k, f_km1, d_anchor, steps, /*rotate=*/false);
  run(checked);
}

void forecast_calibrate_rotate(const Tensor& f_k, const Tensor& f_km1, const Tensor& d_anchor,
                               const Tensor& steps) {
  CheckedCalibrate checked;
  check_forecast_calibrate(checked, f_k, f_km1, d_anchor, steps, /*rotate=*/true);
  run(checked);
}

void forecast_calibrate_list(const TensorList& f_k, const TensorList& f_km1,
                             const TensorList& d_anchor, const Tensor& steps) {
  CheckedCalibrate checked;
  check_forecast_calibrate(checked, f_k, f_km1, d_anchor, steps);
  run(checked);
}

Tensor forecast(const TensorList& history, const Tensor& weights) {
  CheckedForecast checked;
  check_forecast(checked, history, weights, nullptr);
  const Arg like("forecast", "history", 0, history[0]);
  std::vector<std::int64_t> strides(like.dim, 1);
  for (std::int64_t i = like.dim - 2; i >= 0; --i) {
    strides[i] = strides[i + 1] * std::max<std::int64_t>(like.sizes[i + 1], 1);
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(like.dim, like.sizes, strides.data(), like.dtype,
                                                  like.device_type, like.device_index, &handle));
  Tensor out(handle);
  checked.args.out = out.data_ptr();
  run(checked);
  return out;
}

void forecast_out(const TensorList& history, const Tensor& weights, const Tensor& out) {
  CheckedForecast checked;
  check_forecast(checked, history, weights, &out);
  run(checked);
}

void forecast_residual(const Tensor& x, const TensorList& history, const Tensor& weights,
                       const TensorList& gates) {
  CheckedForecastResidual checked;
  check_forecast_residual(checked, x, history, weights, gates);
  run(checked);
}

void forecast_residual_packed(const Tensor& x, const Tensor& history, const Tensor& weights,
                              const Tensor& gates) {
  CheckedForecastResidual checked;
  check_forecast_residual_packed(checked, x, history, weights, gates);
  run(checked);
}

void commit(const Tensor& feature, const TensorList& history, const Tensor& transition,
            const std::optional<Tensor>& stats) {
  CheckedCommit checked;
  check_commit(checked, feature, history, transition, stats);
  run(checked);
}

void commit_list(const TensorList& features, const TensorList& history, const Tensor& transition,
                 const std::optional<Tensor>& stats) {
  CheckedCommit checked;
  check_commit_list(checked, features, history, transition, stats);
  run(checked);
}

void register_overloads(torch::stable::detail::StableLibrary& m) {
  m.impl("forecast_calibrate", TORCH_BOX(&forecast_calibrate));
  m.impl("forecast_calibrate.tensor", TORCH_BOX(&forecast_calibrate_tensor));
  m.impl("forecast_calibrate.list", TORCH_BOX(&forecast_calibrate_list));
  m.impl("forecast_calibrate.rotate", TORCH_BOX(&forecast_calibrate_rotate));
  m.impl("forecast", TORCH_BOX(&forecast));
  m.impl("forecast.out", TORCH_BOX(&forecast_out));
  m.impl("forecast_residual_", TORCH_BOX(&forecast_residual));
  m.impl("forecast_residual_.packed", TORCH_BOX(&forecast_residual_packed));
  m.impl("commit_", TORCH_BOX(&commit));
  m.impl("commit_.list", TORCH_BOX(&commit_list));
}

}  // namespace
}  // namespace foca::ops
