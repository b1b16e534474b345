// Between the launchers and the kernels: one table of functions per instruction set. Ranges
// [begin, end) count elements of one tensor.
#pragma once

#include <cstdint>

#include "foca/args.h"
#include "foca/math.h"

namespace foca::cpu {

// A tensor and its non-zero weight.
struct Term {
  const void* data;
  float weight;
};

// One feature of the collapsed skip, without its zero weights.
struct FeatureTerms {
  const Term* terms;
  int n_terms;
  const void* gate;
};

// A row of the transition; bit q of `used` says that weight[q] is not zero.
struct TransitionRow {
  unsigned used;
  float weight[kMaxHistory];
  float feature_weight;
};

struct Transition {
  TransitionRow rows[kMaxHistory + kMaxStats];
  unsigned used;  // by any row
  bool feature_used;
};

// Elements of x whose float32 sums are held in cache by `residual`: 64 KiB. Shorter blocks restart
// the hardware prefetcher too often: for x [64, 49, 192] float32, L = 14, K = 3 on two threads of
// an AMD EPYC (Zen 4), November 2026, otherwise idle, the median of 60 calls was 28 GB/s with 2048,
// 29 to 33 with 8192, 35 with 16384 and 32 with 32768, beside a copy of 29 to 32.
constexpr std::int64_t kResidualBlock = 16384;

struct KernelTable {
  const char* name;
  void (*calibrate)(const CalibrateTensors& tensors, ScalarType dtype, bool rotate,
                    math::CalibrateScalars scalars, std::int64_t begin, std::int64_t end);
  // stream: write past the caches.
  void (*forecast)(void* out, const Term* terms, int n_terms, ScalarType dtype, std::int64_t begin,
                   std::int64_t end, bool stream);
  // At most kResidualBlock elements.
  void (*residual)(const ForecastResidualArgs& args, const FeatureTerms* features, int n_features,
                   std::int64_t begin, std::int64_t end);
  // Adds the squares of row k + r to sums[r].
  void (*commit)(const CommitArgs& args, int feature, const Transition& transition,
                 std::int64_t begin, std::int64_t end, double* sums);
};

// The table in use; see isa_name() and set_isa() in foca/cpu.h.
const KernelTable& kernels();

}  // namespace foca::cpu
