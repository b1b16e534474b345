// Launchers: drop zero weights, cut the work into chunks, run the chunks in parallel.
#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "foca/cpu.h"

namespace foca::cpu {
namespace {

// Fixed, so that the partial sums of commit, and with them their total, never depend on the
// threads.
constexpr std::int64_t kChunk = 16384;
// Fewer elements than this are not worth waking a thread (the same as at::internal::GRAIN_SIZE).
constexpr std::int64_t kGrainElements = 32768;
// A result of this size would push its own inputs out of the caches: it is written past them.
constexpr std::int64_t kStreamBytes = 8 << 20;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <typename Body>
void parallel_for(ParallelFor parallel, std::int64_t size, std::int64_t grain, const Body& body) {
  if (size <= 0) return;
  if (parallel == nullptr || size <= grain) {
    body(0, size);
    return;
  }
  const RangeBody call = [](std::int64_t begin, std::int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  parallel(size, grain, call, const_cast<void*>(static_cast<const void*>(&body)));
}

// Runs body(tensor, chunk, begin, end) over the chunks of many tensors, numbered through.
template <typename Numel, typename Body>
void for_each_chunk(ParallelFor parallel, int count, const Numel& numel, const Body& body) {
  std::vector<std::int64_t> first(count + 1, 0);
  std::int64_t elements = 0;
  for (int t = 0; t < count; ++t) {
    first[t + 1] = first[t] + ceil_div(numel(t), kChunk);
    elements += numel(t);
  }
  if (elements == 0) return;
  // Chunks of small tensors are small: what counts is elements.
  parallel_for(parallel, first[count], ceil_div(kGrainElements * first[count], elements),
               [&](std::int64_t begin, std::int64_t end) {
                 int t = static_cast<int>(std::upper_bound(first.begin(), first.end(), begin) -
                                          first.begin() - 1);
                 for (std::int64_t chunk = begin; chunk < end; ++chunk) {
                   while (chunk >= first[t + 1]) ++t;
                   const std::int64_t start = (chunk - first[t]) * kChunk;
                   body(t, chunk, start, std::min(start + kChunk, numel(t)));
                 }
               });
}

int nonzero_terms(Term* terms, const void* const* history, const float* weights, int k) {
  int n = 0;
  for (int p = 0; p < k; ++p) {
    if (weights[p] != 0.0f) terms[n++] = {history[p], weights[p]};
  }
  return n;
}

}  // namespace

void launch_forecast_calibrate(const CalibrateArgs& args, const float* steps,
                               ParallelFor parallel) {
  const KernelTable& table = kernels();
  const math::CalibrateScalars scalars = math::calibrate_scalars(steps[0], steps[1]);
  for_each_chunk(
      parallel, args.count, [&](int t) { return args.tensors[t].numel; },
      [&](int t, std::int64_t, std::int64_t begin, std::int64_t end) {
        table.calibrate(args.tensors[t], args.dtype, args.rotate, scalars, begin, end);
      });
}

void launch_forecast(const ForecastArgs& args, const float* weights, ParallelFor parallel) {
  const KernelTable& table = kernels();
  Term terms[kMaxHistory];
  const int n_terms = nonzero_terms(terms, args.history, weights, args.k);
  const std::int64_t size = args.dtype == ScalarType::kFloat32 ? 4 : 2;
  const bool aligned = reinterpret_cast<std::uintptr_t>(args.out) % size == 0;
  const bool stream = aligned && args.numel * size >= kStreamBytes;
  parallel_for(parallel, args.numel, kGrainElements, [&](std::int64_t begin, std::int64_t end) {
    table.forecast(args.out, terms, n_terms, args.dtype, begin, end, stream);
  });
}

void launch_forecast_residual(const ForecastResidualArgs& args, const float* weights,
                              ParallelFor parallel) {
  const KernelTable& table = kernels();
  Term terms[kMaxTerms];
  FeatureTerms features[kMaxFeatures];
  int n_features = 0;
  Term* next = terms;
  for (int l = 0; l < args.features; ++l) {
    const float* row = weights + (args.weights_per_feature ? l * args.k : 0);
    const int n = nonzero_terms(next, args.history + l * args.k, row, args.k);
    if (n == 0) continue;  // the whole feature is skipped
    features[n_features++] = {next, n, args.gates == nullptr ? nullptr : args.gates[l]};
    next += n;
  }
  if (n_features == 0) return;
  const std::int64_t numel = args.batch * args.rows * args.cols;
  // Whole rows where they fit, so that a row's gate is read in one piece.
  const bool whole_rows = args.cols > 0 && args.cols <= kResidualBlock;
  const std::int64_t block = whole_rows ? kResidualBlock / args.cols * args.cols : kResidualBlock;
  const std::int64_t elements_per_block = block * (next - terms);
  parallel_for(parallel, ceil_div(numel, block),
               std::max<std::int64_t>(1, kGrainElements / elements_per_block),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   table.residual(args, features, n_features, i * block,
                                  std::min((i + 1) * block, numel));
                 }
               });
}

void launch_commit(const CommitArgs& args, const float* transition, ParallelFor parallel) {
  const KernelTable& table = kernels();
  Transition sparse = {};
  for (int p = 0; p < args.k + args.stat_rows; ++p) {
    TransitionRow& row = sparse.rows[p];
    const float* weights = transition + p * (args.k + 1);
    for (int q = 0; q < args.k; ++q) {
      row.weight[q] = weights[q];
      if (weights[q] != 0.0f) row.used |= 1u << q;
    }
    row.feature_weight = weights[args.k];
    sparse.used |= row.used;
    sparse.feature_used |= weights[args.k] != 0.0f;
  }
  std::int64_t chunks = 0;
  for (int t = 0; t < args.count; ++t) chunks += ceil_div(args.numel[t], kChunk);
  std::vector<double> partial(chunks * args.stat_rows, 0.0);
  for_each_chunk(
      parallel, args.count, [&](int t) { return args.numel[t]; },
      [&](int t, std::int64_t chunk, std::int64_t begin, std::int64_t end) {
        table.commit(args, t, sparse, begin, end, partial.data() + chunk * args.stat_rows);
      });
  const double* sums = partial.data();
  for (int t = 0; t < args.count && args.stat_rows > 0; ++t) {
    for (int r = 0; r < args.stat_rows; ++r) {
      double total = 0.0;
      for (std::int64_t c = 0; c < ceil_div(args.numel[t], kChunk); ++c) {
        total += sums[c * args.stat_rows + r];
      }
      args.stats[t * args.stat_rows + r] = static_cast<float>(total);
    }
    sums += ceil_div(args.numel[t], kChunk) * args.stat_rows;
  }
}

}  // namespace foca::cpu
