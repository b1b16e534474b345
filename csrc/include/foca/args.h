// Arguments of the launchers in foca/cpu.h and foca/cuda.h: raw pointers and sizes.
//
// Tensors are dense and row-major. Nothing is checked here: a written tensor must not overlap
// any other argument, sizes must agree, and limits are those of foca/types.h.
#pragma once

#include <cstdint>

#include "foca/types.h"

namespace foca {

// One feature of forecast_calibrate; all three tensors hold `numel` elements of one type.
struct CalibrateTensors {
  void* f_k;  // written only when the step rotates
  void* f_km1;
  const void* d_anchor;
  std::int64_t numel;
};

struct CalibrateArgs {
  const CalibrateTensors* tensors;  // [count]
  int count;
  ScalarType dtype;
  bool rotate;  // f_km1 <- F_k and f_k <- F_{k+1}, instead of f_km1 <- F_{k+1}
};

struct ForecastArgs {
  void* out;                   // [numel]
  const void* const* history;  // k pointers to [numel]
  int k;
  std::int64_t numel;
  ScalarType dtype;
};

// x is seen as [batch, rows, cols]; the gate of element (b, s, d) of feature l is
// gates[l][b * gate_batch_stride + s * gate_row_stride + d].
struct ForecastResidualArgs {
  void* x;
  ScalarType x_dtype;
  const void* const* history;  // features * k pointers to tensors like x, feature-major
  ScalarType history_dtype;
  int features;
  int k;
  bool weights_per_feature;  // weights are [features, k], else [k]
  const void* const* gates;  // features pointers, or nullptr: ungated
  ScalarType gate_dtype;
  std::int64_t batch, rows, cols;
  std::int64_t gate_batch_stride, gate_row_stride;
};

struct CommitArgs {
  const void* const* features;  // count pointers
  void* const* history;         // count * k pointers, feature-major; updated in place
  const std::int64_t* numel;    // [count]
  int count;
  int k;
  int stat_rows;  // R: rows k..k+R-1 of the transition are reduced to stats
  ScalarType feature_dtype;
  ScalarType history_dtype;
  float* stats;  // [count, R], or nullptr when R = 0
};

}  // namespace foca
