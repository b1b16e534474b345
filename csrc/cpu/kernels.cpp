// CPU kernels. This file is compiled once per instruction set, with FOCA_ISA naming it; nothing in
// it may call a template or inline function of a library (see simd.h). Loads convert to float32,
// arithmetic is float32, and each result is rounded to its memory type once.
#include "cpu/kernels.h"

#include "cpu/simd.h"

namespace foca::cpu::FOCA_ISA {
namespace {

struct NoGate {};

template <typename Body>
FOCA_SIMD void with_type(ScalarType type, const Body& body) {
  switch (type) {
    case ScalarType::kFloat32:
      return body(float{});
    case ScalarType::kFloat16:
      return body(fp16{});
    case ScalarType::kBFloat16:
      return body(bf16{});
  }
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Calls body(Count<n>) so that loops over few terms unroll; Count<0> stands for "more, count at run
// time".
template <typename Body>
FOCA_SIMD void with_count(int n, const Body& body) {
  switch (n) {
    case 1:
      return body(Count<1>{});
    case 2:
      return body(Count<2>{});
    case 3:
      return body(Count<3>{});
    case 4:
      return body(Count<4>{});
    default:
      return body(Count<0>{});
  }
}

// F_{k+1} = F_k + h/2 (D_anchor + (F_k - F_{k-1}) / h_prev), into f_km1 (and F_k into f_km1 when
// rotating). Aliasing: none. Traffic per element: 3 reads, 1 write (2 when rotating).
template <typename T, bool kRotate>
void calibrate_kernel(T* f_k, T* f_km1, const T* d_anchor, math::CalibrateScalars scalars,
                      std::int64_t n) {
  for_each_vector(n, [=](std::int64_t i, auto extent) __attribute__((always_inline)) {
    const Float current = load(f_k + i, extent);
    const Float next =
        math::calibrate(current, load(f_km1 + i, extent), load(d_anchor + i, extent), scalars);
    if constexpr (kRotate) {
      store(f_km1 + i, current, extent);
      store(f_k + i, next, extent);
    } else {
      store(f_km1 + i, next, extent);
    }
  });
}

// out = sum_p w_p h_p over terms of one type.
// Aliasing: none. Traffic per element: n_terms reads, 1 write (and, unless streamed, a read of the
// line that is written).
template <typename T, int kTerms>
void forecast_kernel(T* out, const Term* terms, int n_terms, std::int64_t offset, std::int64_t n,
                     bool stream) {
  const T* data[kMaxHistory];
  float weight[kMaxHistory];
  const int count = kTerms > 0 ? kTerms : n_terms;
  for (int p = 0; p < count; ++p) {
    data[p] = static_cast<const T*>(terms[p].data) + offset;
    weight[p] = terms[p].weight;
  }
  const auto body = [&](std::int64_t i, auto extent) __attribute__((always_inline)) {
    Float acc = {};
    for (int p = 0; p < count; ++p) {
      acc = math::add_term(acc, weight[p], load(data[p] + i, extent));
    }
    store(out + i, acc, extent);
  };
  if (!stream) return for_each_vector(n, body);
  const auto misplaced = reinterpret_cast<std::uintptr_t>(out) / sizeof(T) % kLanes;
  std::int64_t i = misplaced == 0 ? 0 : kLanes - static_cast<std::int64_t>(misplaced);
  if (i > n) i = n;
  if (i > 0) body(0, Tail{static_cast<int>(i)});
  for (; i + kLanes <= n; i += kLanes) body(i, Streamed{});
  if (i < n) body(i, Tail{static_cast<int>(n - i)});
  end_stream();
}

// acc += sum_l gate_l sum_p w_lp h_lp over kFeatures features of equally many terms, one after the
// other; acc is float32 and stays in cache. Aliasing: none. Traffic per element: every term read
// once, and the gates where they are not shared by rows.
template <typename T, typename Gate, int kTerms, int kFeatures>
void add_features_kernel(float* acc, const FeatureTerms* features, std::int64_t offset,
                         std::int64_t gate_offset, std::int64_t n) {
  const T* data[kFeatures][kMaxHistory];
  float weight[kFeatures][kMaxHistory];
  const Gate* gate[kFeatures];
  const int count = kTerms > 0 ? kTerms : features->n_terms;
  for (int l = 0; l < kFeatures; ++l) {
    for (int p = 0; p < count; ++p) {
      data[l][p] = static_cast<const T*>(features[l].terms[p].data) + offset;
      weight[l][p] = features[l].terms[p].weight;
    }
    if constexpr (!__is_same(Gate, NoGate)) {
      gate[l] = static_cast<const Gate*>(features[l].gate) + gate_offset;
    }
  }
  for_each_vector(n, [&](std::int64_t i, auto extent) __attribute__((always_inline)) {
    Float x = load(acc + i, extent);
    for (int l = 0; l < kFeatures; ++l) {
      Float feature = {};
      for (int p = 0; p < count; ++p) {
        feature = math::add_term(feature, weight[l][p], load(data[l][p] + i, extent));
      }
      if constexpr (__is_same(Gate, NoGate)) {
        x = x + feature;
      } else {
        x = math::add_gated(x, load(gate[l] + i, extent), feature);
      }
    }
    store(acc + i, x, extent);
  });
}

// kFeatures features over elements [begin, end) of x, cut where the gates start anew.
template <typename T, typename Gate, int kFeatures>
void add_features(float* acc, const ForecastResidualArgs& args, const FeatureTerms* features,
                  std::int64_t begin, std::int64_t end) {
  const bool one_piece = __is_same(Gate, NoGate) || args.gate_row_stride == args.cols;
  with_count(features->n_terms, [&](auto count) __attribute__((always_inline)) {
    constexpr int kTerms = decltype(count)::value;
    for (std::int64_t i = begin; i < end;) {
      std::int64_t stop = end;
      std::int64_t gate_offset = i;
      if (!one_piece) {
        const std::int64_t row = i / args.cols;
        const std::int64_t col = i - row * args.cols;
        if (i + args.cols - col < stop) stop = i + args.cols - col;
        gate_offset = row / args.rows * args.gate_batch_stride + col;
      }
      add_features_kernel<T, Gate, kTerms, kFeatures>(acc + (i - begin), features, i, gate_offset,
                                                      stop - i);
      i = stop;
    }
  });
}

// How many of the next features go in one pass over acc. With two, acc is loaded and stored half as
// often and more streams are under way: 10 to 20 % faster than one on an AMD EPYC with AVX-512
// (8 features of 3 terms, bf16 and fp32, 2026-11); four were slower again.
FOCA_SIMD int take(const FeatureTerms* features, int left) {
  return left > 1 && features[0].n_terms == features[1].n_terms ? 2 : 1;
}

// x += sum_l gate_l sum_p w_lp h_lp, for one block of x.
// Aliasing: x overlaps nothing. Traffic per element: x read and written once, every term read once.
void residual(const ForecastResidualArgs& args, const FeatureTerms* features, int n_features,
              std::int64_t begin, std::int64_t end) {
  alignas(64) float acc[kResidualBlock];
  with_type(args.x_dtype, [&](auto type) __attribute__((always_inline)) {
    auto* x = static_cast<decltype(type)*>(args.x) + begin;
    for_each_vector(end - begin, [&](std::int64_t i, auto extent) __attribute__((always_inline)) {
      store(acc + i, load(x + i, extent), extent);
    });
  });
  for (int l = 0, taken; l < n_features; l += taken) {
    taken = take(features + l, n_features - l);
    with_type(args.history_dtype, [&](auto type) __attribute__((always_inline)) {
      using T = decltype(type);
      const auto add = [&](auto gate) __attribute__((always_inline)) {
        using Gate = decltype(gate);
        if (taken == 2) {
          add_features<T, Gate, 2>(acc, args, features + l, begin, end);
        } else {
          add_features<T, Gate, 1>(acc, args, features + l, begin, end);
        }
      };
      if (args.gates == nullptr) {
        add(NoGate{});
      } else {
        with_type(args.gate_dtype, add);
      }
    });
  }
  with_type(args.x_dtype, [&](auto type) __attribute__((always_inline)) {
    auto* x = static_cast<decltype(type)*>(args.x) + begin;
    for_each_vector(end - begin, [&](std::int64_t i, auto extent) __attribute__((always_inline)) {
      store(x + i, load(acc + i, extent), extent);
    });
  });
}

// Squares are summed in this many lanes on every instruction set, so that all give the same bits.
constexpr int kSumLanes = 16;
constexpr int kSumVectors = kSumLanes / kLanes;
// Vectors handled together: enough to hide the latency of a row's chain of additions.
constexpr int kGroup = kSumVectors > 2 ? kSumVectors : 2;
constexpr int kGroupSize = kGroup * kLanes;
// After this many elements, 32 to a lane, the float32 lanes are added to the double sums.
constexpr std::int64_t kCommitBlock = 32 * kSumLanes;

using RowSums = Float[kMaxStats][kSumVectors];

// One group of elements from i on, all of them or the first `count`. kK is K, or 8 for K > 4.
template <typename F, typename H, int kK>
FOCA_SIMD void commit_group(const F* feature, H* const* history, const Transition& transition,
                            int k, int stat_rows, std::int64_t i, int count, RowSums& sums) {
  const auto each = [&](const auto& body) __attribute__((always_inline)) {
    for (int g = 0; g < kGroup; ++g) {
      const int left = count - g * kLanes;
      if (left >= kLanes) {
        body(g, Full{});
      } else if (left > 0) {
        body(g, Tail{left});
      }
    }
  };
  // All old values are in registers before the first new one is stored.
  Float old[kK][kGroup] = {};
  Float added[kGroup] = {};
  for (int q = 0; q < kK; ++q) {
    if ((transition.used & 1u << q) == 0) continue;
    each([&](int g, auto extent) __attribute__((always_inline)) {
      old[q][g] = load(history[q] + i + g * kLanes, extent);
    });
  }
  if (transition.feature_used) {
    each([&](int g, auto extent)
             __attribute__((always_inline)) { added[g] = load(feature + i + g * kLanes, extent); });
  }
  for (int r = 0; r < k + stat_rows; ++r) {
    const TransitionRow& row = transition.rows[r];
    Float value[kGroup] = {};
    for (int q = 0; q < kK; ++q) {
      // The same way at every group, so the processor predicts it; a zero must not touch NaN.
      if ((row.used & 1u << q) == 0) continue;
      for (int g = 0; g < kGroup; ++g) {
        value[g] = math::add_term(value[g], row.weight[q], old[q][g]);
      }
    }
    if (row.feature_weight != 0.0f) {
      for (int g = 0; g < kGroup; ++g) {
        value[g] = math::add_term(value[g], row.feature_weight, added[g]);
      }
    }
    if (r < k) {
      each([&](int g, auto extent) __attribute__((always_inline)) {
        store(history[r] + i + g * kLanes, value[g], extent);
      });
    } else {
      // Lanes past `count` hold zeros.
      for (int g = 0; g < kGroup; ++g) sums[r - k][g % kSumVectors] += value[g] * value[g];
    }
  }
}

// h_p <- sum_q M_pq v_q with v = (old h_0..h_{K-1}, feature); rows K.. add their squares to sums.
// Squares are float32 over at most 32 terms, then double.
// Aliasing: every h_p is input and output, groupwise; feature overlaps nothing. Traffic per
// element: the used columns read once, K writes.
template <typename F, typename H, int kK>
void commit_kernel(const F* feature, H* const* history, const Transition& transition, int k,
                   int stat_rows, std::int64_t begin, std::int64_t end, double* sums) {
  for (std::int64_t block = begin; block < end; block += kCommitBlock) {
    const std::int64_t stop = end - block < kCommitBlock ? end : block + kCommitBlock;
    RowSums lanes = {};
    std::int64_t i = block;
    for (; i + kGroupSize <= stop; i += kGroupSize) {
      commit_group<F, H, kK>(feature, history, transition, k, stat_rows, i, kGroupSize, lanes);
    }
    if (i < stop) {
      commit_group<F, H, kK>(feature, history, transition, k, stat_rows, i,
                             static_cast<int>(stop - i), lanes);
    }
    for (int r = 0; r < stat_rows; ++r) {
      float lane[kSumLanes];
      __builtin_memcpy(lane, lanes[r], sizeof(lane));
      for (int j = 0; j < kSumLanes; ++j) sums[r] += lane[j];
    }
  }
}

void commit(const CommitArgs& args, int feature, const Transition& transition, std::int64_t begin,
            std::int64_t end, double* sums) {
  with_type(args.history_dtype, [&](auto type) __attribute__((always_inline)) {
    using H = decltype(type);
    H* history[kMaxHistory];
    for (int p = 0; p < args.k; ++p) {
      history[p] = static_cast<H*>(args.history[static_cast<std::int64_t>(feature) * args.k + p]);
    }
    with_type(args.feature_dtype, [&](auto feature_type) __attribute__((always_inline)) {
      using F = decltype(feature_type);
      with_count(args.k, [&](auto count) __attribute__((always_inline)) {
        constexpr int kCount = decltype(count)::value;
        commit_kernel<F, H, kCount == 0 ? kMaxHistory : kCount>(
            static_cast<const F*>(args.features[feature]), history, transition, args.k,
            args.stat_rows, begin, end, sums);
      });
    });
  });
}

void calibrate(const CalibrateTensors& tensors, ScalarType dtype, bool rotate,
               math::CalibrateScalars scalars, std::int64_t begin, std::int64_t end) {
  with_type(dtype, [&](auto type) __attribute__((always_inline)) {
    using T = decltype(type);
    auto* kernel = rotate ? calibrate_kernel<T, true> : calibrate_kernel<T, false>;
    kernel(static_cast<T*>(tensors.f_k) + begin, static_cast<T*>(tensors.f_km1) + begin,
           static_cast<const T*>(tensors.d_anchor) + begin, scalars, end - begin);
  });
}

void forecast(void* out, const Term* terms, int n_terms, ScalarType dtype, std::int64_t begin,
              std::int64_t end, bool stream) {
  with_type(dtype, [&](auto type) __attribute__((always_inline)) {
    using T = decltype(type);
    with_count(n_terms, [&](auto count) __attribute__((always_inline)) {
      forecast_kernel<T, decltype(count)::value>(static_cast<T*>(out) + begin, terms, n_terms,
                                                 begin, end - begin, stream);
    });
  });
}

}  // namespace
}  // namespace foca::cpu::FOCA_ISA

namespace foca::cpu {

#define FOCA_CONCAT_(a, b) a##b
#define FOCA_CONCAT(a, b) FOCA_CONCAT_(a, b)
#define FOCA_STRING_(a) #a
#define FOCA_STRING(a) FOCA_STRING_(a)

const KernelTable& FOCA_CONCAT(kernels_, FOCA_ISA)() {
  static constexpr KernelTable kTable = {FOCA_STRING(FOCA_ISA), FOCA_ISA::calibrate,
                                         FOCA_ISA::forecast, FOCA_ISA::residual, FOCA_ISA::commit};
  return kTable;
}

}  // namespace foca::cpu
