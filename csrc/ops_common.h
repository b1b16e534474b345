// What ops.cpp and ops_cuda.cpp share: the checks of every operator. Each check_* function raises
// std::runtime_error (RuntimeError in Python) with the text that foca_kernels/checks.py gives, or
// returns the launcher's arguments. Schemas are defined in foca_kernels/schemas.py, not here.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "foca/args.h"

namespace foca::ops {

using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;

// ---- rules: ops_rules.cpp ----------------------------------------------------------------------

// A tensor argument as the checks see it; `index` is its place in a list, or -1.
struct Arg {
  Arg(const char* op, const char* name, int index, const Tensor& tensor);

  std::string label() const;  // "history[1]"
  std::string dtype_name() const;
  std::string device_name() const;
  std::string shape() const;  // "[4, 3]"
  bool on_cpu() const;
  bool same_device(const Arg& other) const;
  bool has_shape(std::initializer_list<std::int64_t> shape) const;
  ScalarType scalar_type() const;  // after check_floating

  const char* op;
  const char* name;
  int index;
  const Tensor* tensor;
  std::int32_t dtype, device_type, device_index;
  std::int64_t dim, numel;
  const std::int64_t* sizes;
  char* data = nullptr;  // set by check_plain
};

[[noreturn]] void fail(const Arg& arg, const std::string& expected, const std::string& got);
[[noreturn]] void fail(const char* op, const char* arg, const std::string& expected,
                       const std::string& got);
std::string count(std::int64_t n, const char* noun = "tensor");

void check_floating(const Arg& arg);
void check_same_dtype(const Arg& arg, const Arg& other);
void check_same_device(const Arg& arg, const Arg& other);
void check_same_shape(const Arg& arg, const Arg& other);
void check_plain(Arg& arg);                         // row-major memory, no gradient tracking
void check_lead(Arg& arg);                          // the tensor that others are compared with
void check_follow(Arg& arg, const Arg& other);      // same dtype, device and shape
void check_small(const Arg& arg, const Arg& like);  // float32 on the CPU or on like's device
void check_finite(const Arg& arg);                  // host values only
// Finite, non-zero and of one sign; the names are those of the arguments that hold h and h_prev.
void check_step_sizes(const char* op, const char* h_name, const char* h_prev_name, float h,
                      float h_prev);

// A tensor and whether the operator writes it.
struct Access {
  const Arg* arg;
  bool written;
};
// A written tensor shares no byte with any other argument. Empty tensors never overlap.
void check_own_memory(const std::vector<Access>& accesses);

// Weights, steps or a transition: float32 values on the host or on the features' device.
struct Small {
  const float* data = nullptr;
  bool on_host = true;
};

std::vector<Arg> make_args(const char* op, const char* name, const TensorList& tensors);
void add(std::vector<Access>& accesses, const std::vector<Arg>& args, bool written);
Small small(const Arg& arg);                                        // after check_plain
std::string shape_text(std::initializer_list<std::int64_t> shape);  // "[4, 3]"

// One dtype for all; slot i has the device and shape of shapes(i).
template <typename Shapes>
void check_history(std::vector<Arg>& history, const Shapes& shapes) {
  for (std::size_t i = 0; i < history.size(); ++i) {
    if (i == 0) {
      check_floating(history[i]);
    } else {
      check_same_dtype(history[i], history[0]);
    }
    const Arg& like = shapes(i);
    check_same_device(history[i], like);
    check_same_shape(history[i], like);
    check_plain(history[i]);
  }
}

// ---- operators: ops_checks.cpp, ops_checks_residual.cpp
// ------------------------------------------

struct CheckedCalibrate {
  CalibrateArgs args = {};
  Small steps;
  float host_steps[2] = {};  // holds the values when they came as numbers
  std::int32_t device_index = -1;
  std::vector<CalibrateTensors> tensors;
};
struct CheckedForecast {
  ForecastArgs args = {};
  Small weights;
  std::int32_t device_index = -1;
  std::vector<const void*> history;
};
struct CheckedForecastResidual {
  ForecastResidualArgs args = {};
  Small weights;
  std::int32_t device_index = -1;
  std::vector<const void*> history, gates;
};
struct CheckedCommit {
  CommitArgs args = {};
  Small transition;
  std::int32_t device_index = -1;
  std::vector<const void*> features;
  std::vector<void*> history;
  std::vector<std::int64_t> numel;
};

// The results point into themselves, so they are filled in place and never copied.
void check_forecast_calibrate(CheckedCalibrate& checked, const Tensor& f_k, const Tensor& f_km1,
                              const Tensor& d_anchor, double h, double h_prev);
void check_forecast_calibrate(CheckedCalibrate& checked, const Tensor& f_k, const Tensor& f_km1,
                              const Tensor& d_anchor, const Tensor& steps, bool rotate);
void check_forecast_calibrate(CheckedCalibrate& checked, const TensorList& f_k,
                              const TensorList& f_km1, const TensorList& d_anchor,
                              const Tensor& steps);
// Without `out`, args.out is left for the caller to allocate like history[0].
void check_forecast(CheckedForecast& checked, const TensorList& history, const Tensor& weights,
                    const Tensor* out);
void check_forecast_residual(CheckedForecastResidual& checked, const Tensor& x,
                             const TensorList& history, const Tensor& weights,
                             const TensorList& gates);
void check_forecast_residual_packed(CheckedForecastResidual& checked, const Tensor& x,
                                    const Tensor& history, const Tensor& weights,
                                    const Tensor& gates);
void check_commit(CheckedCommit& checked, const Tensor& feature, const TensorList& history,
                  const Tensor& transition, const std::optional<Tensor>& stats);
void check_commit_list(CheckedCommit& checked, const TensorList& features,
                       const TensorList& history, const Tensor& transition,
                       const std::optional<Tensor>& stats);

}  // namespace foca::ops
