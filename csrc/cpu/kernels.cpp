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

// x -> acc and acc -> x, elements [begin, end) of x.
void read_x(float* acc, const ForecastResidualArgs& args, std::int64_t begin, std::int64_t end) {
  with_type(args.x_dtype, [&](auto type) __attribute__((always_inline)) {
    const auto* x = static_cast<const decltype(type)*>(args.x) + begin;
    for_each_vector(end - begin, [&](std::int64_t i, auto extent) __attribute__((always_inline)) {
      store(acc + i, load(x + i, extent), extent);
    });
  });
}

void write_x(const float* acc, const ForecastResidualArgs& args, std::int64_t begin,
             std::int64_t end) {
  with_type(args.x_dtype, [&](auto type) __attribute__((always_inline)) {
    auto* x = static_cast<decltype(type)*>(args.x) + begin;
    for_each_vector(end - begin, [&](std::int64_t i, auto extent) __attribute__((always_inline)) {
      store(x + i, load_near(acc + i, extent), extent);
    });
  });
}

// One pass over a block of x, which adds some features to it.
struct Pass {
  const FeatureTerms* features;
  const FeatureTerms* next;  // the features that the pass after this one reads first,
  int n_next;
  std::int64_t next_begin;  // and from which element on
  std::int64_t begin, end;  // the block
  bool first, last;         // whether x is to be read, to be written
};

// A pass goes through its block by this many elements. x is read and written strip by strip, beside
// the features rather than before and after them, and what follows the block is asked for before
// its end, so that the memory never waits. On two threads of an AMD EPYC (AVX-512, 2026-11-21),
// against whole blocks: 19 % faster with L = 2, K = 3 of 8M bf16, 12 % with L = 8 of 1M, 15 % with
// L = 14 of [64, 49, 192] float32, all within 6 % of a plain read of as many bytes. Strips of 128
// were as fast, of 64 slower.
constexpr std::int64_t kStrip = 256;

// acc += sum_l gate_l sum_p w_lp h_lp over kFeatures features of equally many terms; acc holds the
// block in float32 and stays in cache. Aliasing: none. Traffic per element: every term read once,
// the gates where they are not shared by rows, and x in the first and the last pass.
template <typename T, typename Gate, int kTerms, int kFeatures>
void add_features_kernel(float* acc, const ForecastResidualArgs& args, const Pass& pass) {
  constexpr int kSlots = kTerms > 0 ? kTerms : kMaxHistory;
  constexpr std::int64_t kAhead = kPrefetchBytes / static_cast<std::int64_t>(sizeof(T));
  const T* data[kFeatures][kSlots];
  const T* ahead[kFeatures][kSlots];  // what is asked for while data is read
  float weight[kFeatures][kSlots];
  const Gate* gate[kFeatures];
  const int count = kTerms > 0 ? kTerms : pass.features->n_terms;
  for (int l = 0; l < kFeatures; ++l) {
    for (int p = 0; p < count; ++p) {
      const Term& term = pass.features[l].terms[p];
      data[l][p] = static_cast<const T*>(term.data);
      ahead[l][p] = data[l][p] + kAhead;
      weight[l][p] = term.weight;
    }
    if constexpr (!__is_same(Gate, NoGate)) {
      gate[l] = static_cast<const Gate*>(pass.features[l].gate);
    }
  }
  const bool one_piece = __is_same(Gate, NoGate) || args.gate_row_stride == args.cols;
  for (std::int64_t strip = pass.begin, stop; strip < pass.end; strip = stop) {
    stop = strip + kStrip < pass.end ? strip + kStrip : pass.end;
    // Where one pass does all, nothing has to be kept from strip to strip.
    float* sums = pass.first && pass.last ? acc : acc + (strip - pass.begin);
    if (pass.first) read_x(sums, args, strip, stop);
    if (strip + kAhead >= pass.end) {  // the block is under way: on to what follows it
      for (int l = 0; l < kFeatures && l < pass.n_next; ++l) {
        for (int p = 0; p < count && p < pass.next[l].n_terms; ++p) {
          ahead[l][p] = static_cast<const T*>(pass.next[l].terms[p].data) + pass.next_begin +
                        (kAhead - pass.end);
        }
      }
    }
    for (std::int64_t start = strip, cut; start < stop; start = cut) {  // where gates start anew
      cut = stop;
      std::int64_t gate_offset = 0;
      if (!one_piece) {
        const std::int64_t row = start / args.cols;
        if ((row + 1) * args.cols < stop) cut = (row + 1) * args.cols;
        gate_offset = row / args.rows * args.gate_batch_stride - row * args.cols;
      }
      for_each_vector(
          cut - start, [&](std::int64_t offset, auto extent) __attribute__((always_inline)) {
            const std::int64_t i = start + offset;
            Float x = load_near(sums + (i - strip), extent);
            for (int l = 0; l < kFeatures; ++l) {
              Float feature = {};
              for (int p = 0; p < count; ++p) {
                prefetch(ahead[l][p] + i);
                feature = math::add_term(feature, weight[l][p], load_near(data[l][p] + i, extent));
              }
              if constexpr (__is_same(Gate, NoGate)) {
                x = x + feature;
              } else {
                x = math::add_gated(x, load_near(gate[l] + gate_offset + i, extent), feature);
              }
            }
            store(sums + (i - strip), x, extent);
          });
    }
    if (pass.last) write_x(sums, args, strip, stop);
  }
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
  for (int l = 0, taken; l < n_features; l += taken) {
    taken = take(features + l, n_features - l);
    Pass pass = {features + l, features, 0, end, begin, end, l == 0, l + taken == n_features};
    if (!pass.last) pass.next += l + taken, pass.next_begin = begin;
    pass.n_next = take(pass.next, static_cast<int>(features + n_features - pass.next));
    with_type(args.history_dtype, [&](auto type) __attribute__((always_inline)) {
      using T = decltype(type);
      const auto add = [&](auto gate) __attribute__((always_inline)) {
        using Gate = decltype(gate);
        with_count(features[l].n_terms, [&](auto terms) __attribute__((always_inline)) {
          constexpr int kTerms = decltype(terms)::value;
          if (taken == 2) {
            add_features_kernel<T, Gate, kTerms, 2>(acc, args, pass);
          } else {
            add_features_kernel<T, Gate, kTerms, 1>(acc, args, pass);
          }
        });
      };
      if (args.gates == nullptr) {
        add(NoGate{});
      } else {
        with_type(args.gate_dtype, add);
      }
    });
  }
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
