// Launchers for tensors in host memory. Results do not depend on the number of threads or on the
// instruction set.
#pragma once

#include <cstdint>

#include "foca/args.h"

namespace foca::cpu {

// Runs body(begin, end, context) over a partition of [0, size) into ranges of at least `grain`
// items, on threads of the caller's choice; nullptr where one is expected means: run here.
using RangeBody = void (*)(std::int64_t begin, std::int64_t end, void* context);
using ParallelFor = void (*)(std::int64_t size, std::int64_t grain, RangeBody body, void* context);

// steps: float32 [h, h_prev].
void launch_forecast_calibrate(const CalibrateArgs& args, const float* steps, ParallelFor parallel);

// weights: float32 [k].
void launch_forecast(const ForecastArgs& args, const float* weights, ParallelFor parallel);

// weights: float32 [k] or [features, k].
void launch_forecast_residual(const ForecastResidualArgs& args, const float* weights,
                              ParallelFor parallel);

// transition: float32 [k + stat_rows, k + 1].
void launch_commit(const CommitArgs& args, const float* transition, ParallelFor parallel);

// The instruction set in use: "avx512", "avx512_nta" (the same with data prefetched past the
// caches, for AMD), "avx2" or "generic". Of those that were built it is the best one that the
// processor has, or the one that the environment variable FOCA_CPU_ISA names when a kernel first
// runs; a name that is unknown, was not built, or that the processor lacks, throws
// std::runtime_error.
const char* isa_name();

// Switches the instruction set for the whole process (tests do); nullptr goes back to the rule
// above.
void set_isa(const char* name);

}  // namespace foca::cpu
