// CPU kernels against double arithmetic, on every instruction set that this processor has: sizes
// around the vector widths, unaligned tensors, guard bytes, and the same bits on all instruction
// sets and any division of the work.
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "foca/cpu.h"
#include "support.h"

namespace foca::test {
namespace {

// Work in pieces, last one first: results must not depend on it.
void backwards(std::int64_t size, std::int64_t grain, cpu::RangeBody body, void* context) {
  for (std::int64_t end = size; end > 0;) {
    const std::int64_t begin = end > grain ? end - grain : 0;
    body(begin, end, context);
    end = begin;
  }
}

std::string label(const char* op, ScalarType type, std::int64_t n, const char* isa) {
  return std::string(op) + " " + name(type) + " n=" + std::to_string(n) + " on " + isa;
}

void test_forecast(const char* isa) {
  std::mt19937 rng(1);
  for (ScalarType type : kTypes) {
    for (std::int64_t n : kSizes) {
      for (int k = 1; k <= kMaxHistory; ++k) {
        std::vector<Buffer> history;
        for (int p = 0; p < k; ++p) history.push_back(Buffer::random(type, n, rng, p % 3));
        const std::vector<float> weights = random_weights(k, rng);
        // A zero weight's tensor is not even read: NaN in it must not show.
        for (int p = 0; p < k && n > 0; ++p) {
          if (weights[p] == 0.0f) history[p].set(0, 0xffffffff);
        }
        Buffer out(type, n, k % 2);
        const auto data = pointers(history);
        cpu::launch_forecast({out.data(), data.data(), k, n, type}, weights.data(), backwards);
        bool ok = out.guards_intact();
        for (std::int64_t i = 0; i < n; ++i) {
          double sum = 0, magnitude = 0;
          for (int p = 0; p < k; ++p) {
            if (weights[p] == 0.0f) continue;
            sum += weights[p] * history[p][i];
            magnitude += std::fabs(weights[p] * history[p][i]);
          }
          ok = ok && close(type, out[i], sum, magnitude);
        }
        expect(ok, label("forecast", type, n, isa));
      }
    }
  }
}

void test_calibrate(const char* isa) {
  std::mt19937 rng(2);
  const float steps[2] = {-0.7f, -1.3f};
  for (ScalarType type : kTypes) {
    std::vector<Buffer> now, before, slope;
    for (std::int64_t n : kSizes) {
      now.push_back(Buffer::random(type, n, rng, 1));
      before.push_back(Buffer::random(type, n, rng, 2));
      slope.push_back(Buffer::random(type, n, rng));
    }
    for (bool rotate : {false, true}) {
      std::vector<Buffer> f_k = now, f_km1 = before;
      std::vector<CalibrateTensors> tensors;
      for (std::size_t t = 0; t < f_k.size(); ++t) {
        tensors.push_back({f_k[t].data(), f_km1[t].data(), slope[t].data(), kSizes[t]});
      }
      cpu::launch_forecast_calibrate(
          {tensors.data(), static_cast<int>(tensors.size()), type, rotate}, steps, backwards);
      for (std::size_t t = 0; t < f_k.size(); ++t) {
        const Buffer& result = rotate ? f_k[t] : f_km1[t];
        const Buffer& kept = rotate ? f_km1[t] : f_k[t];
        bool ok = kept.same_bits(now[t]) && f_k[t].guards_intact() && f_km1[t].guards_intact();
        for (std::int64_t i = 0; i < kSizes[t]; ++i) {
          const double a = now[t][i], b = before[t][i], d = slope[t][i];
          const double expected = a + 0.5 * steps[0] * (d + (a - b) / steps[1]);
          ok = ok &&
               close(type, result[i], expected, 2 * std::fabs(a) + std::fabs(b) + std::fabs(d));
        }
        expect(ok, label("forecast_calibrate", type, kSizes[t], isa));
      }
    }
  }
}

void test_residual(const char* isa) {
  std::mt19937 rng(3);
  for (const ResidualCase& c : kResidualCases) {
    for (ScalarType x_type : kTypes) {
      for (ScalarType h_type : kTypes) {
        for (ScalarType g_type : {x_type, ScalarType::kFloat32}) {
          const int k = 1 + rng() % 5, features = 1 + rng() % 4;
          const bool per_feature = rng() % 2;
          const std::int64_t n = c.batch * c.rows * c.cols;
          auto weights = random_weights(per_feature ? k * features : k, rng);
          Buffer x = Buffer::random(x_type, n, rng, 1);
          const Buffer old = x;
          std::vector<Buffer> history, gates;
          for (int i = 0; i < k * features; ++i) {
            history.push_back(Buffer::random(h_type, n, rng, i % 2));
          }
          const bool gated = c.gates != ResidualCase::kNone;
          for (int l = 0; l < features && gated; ++l) {
            gates.push_back(Buffer::random(g_type, c.gate_numel(), rng, l % 2));
          }
          const auto history_data = pointers(history), gate_data = pointers(gates);
          auto args = residual_args(c, x_type, h_type, g_type, features, k, per_feature);
          args.x = x.data();
          args.history = history_data.data();
          args.gates = gated ? gate_data.data() : nullptr;
          cpu::launch_forecast_residual(args, weights.data(), backwards);
          bool ok = x.guards_intact();
          for (std::int64_t i = 0; i < n; ++i) {
            double sum = old[i], magnitude = std::fabs(sum);
            for (int l = 0; l < features; ++l) {
              const double gate = gated ? gates[l][c.gate_index(i)] : 1.0;
              for (int p = 0; p < k; ++p) {
                const double w = weights[per_feature ? l * k + p : p];
                sum += gate * w * history[l * k + p][i];
                magnitude += std::fabs(gate * w * history[l * k + p][i]);
              }
            }
            ok = ok && close(x_type, x[i], sum, magnitude);
          }
          expect(ok, label("forecast_residual", x_type, n, isa));
        }
      }
    }
  }
}

void test_commit(const char* isa) {
  std::mt19937 rng(4);
  for (ScalarType h_type : kTypes) {
    for (ScalarType f_type : kTypes) {
      for (std::int64_t n : kSizes) {
        const int k = 1 + rng() % kMaxHistory, stat_rows = rng() % (kMaxStats + 1);
        const auto transition = random_weights((k + stat_rows) * (k + 1), rng);
        std::vector<Buffer> history;
        for (int p = 0; p < k; ++p) history.push_back(Buffer::random(h_type, n, rng, p % 2));
        const std::vector<Buffer> old = history;
        const Buffer feature = Buffer::random(f_type, n, rng, 1);
        std::vector<void*> data;
        for (Buffer& buffer : history) data.push_back(buffer.data());
        const void* feature_data = feature.data();
        std::vector<float> stats(stat_rows + 1, -1.0f);
        cpu::launch_commit(
            {&feature_data, data.data(), &n, 1, k, stat_rows, f_type, h_type, stats.data()},
            transition.data(), backwards);
        bool ok = stats[stat_rows] == -1.0f;
        std::vector<double> squares(stat_rows, 0.0);
        for (std::int64_t i = 0; i < n; ++i) {
          for (int p = 0; p < k + stat_rows; ++p) {
            double sum = 0, magnitude = 0;
            for (int q = 0; q <= k; ++q) {
              const double term = transition[p * (k + 1) + q] * (q < k ? old[q][i] : feature[i]);
              sum += term;
              magnitude += std::fabs(term);
            }
            if (p < k) {
              ok = ok && close(h_type, history[p][i], sum, magnitude);
            } else {
              squares[p - k] += sum * sum;
            }
          }
        }
        for (int r = 0; r < stat_rows; ++r) {
          ok = ok && std::fabs(stats[r] - squares[r]) <= 1e-5 * squares[r];
        }
        for (const Buffer& buffer : history) ok = ok && buffer.guards_intact();
        expect(ok, label("commit", h_type, n, isa));
      }
    }
  }
}

// Every half and bfloat to float32 exactly, and float32 to both with the nearest result.
void test_conversions(const char* isa) {
  std::mt19937 rng(5);
  const float one = 1.0f;
  for (ScalarType type : {ScalarType::kFloat16, ScalarType::kBFloat16}) {
    Buffer all(type, 65536), wide(ScalarType::kFloat32, 65536);
    for (int i = 0; i < 65536; ++i) all.set(i, i), wide.set(i, 0);
    ForecastResidualArgs args = residual_args({1, 1, 65536, ResidualCase::kNone},
                                              ScalarType::kFloat32, type, type, 1, 1, false);
    const void* data = all.data();
    args.x = wide.data();
    args.history = &data;
    cpu::launch_forecast_residual(args, &one, nullptr);
    for (int i = 0; i < 65536; ++i) {
      expect(std::isnan(all[i]) ? std::isnan(wide[i]) : wide[i] == all[i],
             std::string("widening ") + name(type) + " on " + isa);
    }
    // Random bits, and the midpoints between neighbours, where ties go to even.
    Buffer source(ScalarType::kFloat32, 1 << 18), narrow(type, 1 << 18);
    for (int i = 0; i < source.numel(); ++i) {
      float value = static_cast<float>((decode(type, i % 65535) + decode(type, i % 65535 + 1)) / 2);
      std::uint32_t bits = rng();
      if (i < 65536) std::memcpy(&bits, &value, 4);
      source.set(i, bits);
      narrow.set(i, 0);
    }
    args = residual_args({1, 1, source.numel(), ResidualCase::kNone}, type, ScalarType::kFloat32,
                         type, 1, 1, false);
    data = source.data();
    args.x = narrow.data();
    args.history = &data;
    cpu::launch_forecast_residual(args, &one, nullptr);
    const double largest = type == ScalarType::kFloat16 ? 65504 : 0x1.fep127;
    for (int i = 0; i < source.numel(); ++i) {
      const double x = source[i], y = narrow[i];
      bool ok = std::isnan(x) ? std::isnan(y) : false;
      if (!std::isnan(x)) {
        const double limit = largest + half_ulp(type, largest);
        const bool tie = std::fabs(y - x) == half_ulp(type, x);
        ok = std::fabs(x) >= limit
                 ? std::isinf(y) && (x > 0) == (y > 0)
                 : std::fabs(y - x) <= half_ulp(type, x) && !(tie && (narrow.bits(i) & 1) != 0);
      }
      expect(ok, std::string("rounding to ") + name(type) + " on " + isa);
    }
  }
}

// The same bits, statistics included, on every instruction set and any division of the work.
std::vector<Buffer> fingerprint(cpu::ParallelFor parallel) {
  std::mt19937 rng(6);
  std::vector<Buffer> result;
  const auto weights = random_weights(3, rng, 0), transition = random_weights(6 * 4, rng);
  const float steps[2] = {0.3f, 0.7f};
  for (ScalarType type : kTypes) {
    // From 8 MiB on a forecast is written past the caches, here off alignment.
    for (std::int64_t n : {std::int64_t{70001}, (std::int64_t{8} << 20) / element_size(type) + 5}) {
      std::vector<Buffer> history;
      for (int p = 0; p < 3; ++p) history.push_back(Buffer::random(type, n, rng));
      const Buffer feature = Buffer::random(type, n, rng);
      Buffer x = feature, out(type, n, 3), stats(ScalarType::kFloat32, 3);
      std::vector<void*> data;
      for (Buffer& buffer : history) data.push_back(buffer.data());
      const void* const* terms = data.data();
      const void* featured = feature.data();
      cpu::launch_forecast({out.data(), terms, 3, n, type}, weights.data(), parallel);
      auto args = residual_args({1, 1, n, ResidualCase::kFull}, type, type, type, 1, 3, false);
      args.x = x.data(), args.history = terms, args.gates = &featured;
      cpu::launch_forecast_residual(args, weights.data(), parallel);
      const CalibrateTensors pair = {data[0], data[1], featured, n};
      cpu::launch_forecast_calibrate({&pair, 1, type, true}, steps, parallel);
      cpu::launch_commit(
          {&featured, data.data(), &n, 1, 3, 3, type, type, static_cast<float*>(stats.data())},
          transition.data(), parallel);
      for (Buffer* buffer : {&out, &x, &stats}) result.push_back(*buffer);
      for (const Buffer& buffer : history) result.push_back(buffer);
    }
  }
  return result;
}

int run() {
  std::unique_ptr<std::vector<Buffer>> expected;
  for (const char* isa : {"generic", "avx2", "avx512", "avx512_nta"}) {
    try {
      cpu::set_isa(isa);
    } catch (const std::runtime_error& error) {
      std::printf("%s\n", error.what());
      continue;
    }
    test_forecast(isa);
    test_calibrate(isa);
    test_residual(isa);
    test_commit(isa);
    test_conversions(isa);
    for (cpu::ParallelFor parallel : {static_cast<cpu::ParallelFor>(nullptr), &backwards}) {
      auto result = fingerprint(parallel);
      for (std::size_t i = 0; expected != nullptr && i < result.size(); ++i) {
        expect(result[i].same_bits((*expected)[i]), std::string("same bits on ") + isa);
      }
      if (expected == nullptr) expected = std::make_unique<std::vector<Buffer>>(result);
    }
    std::printf("%s: done\n", isa);
  }
  return report();
}

// With FOCA_CPU_ISA set: the named instruction set is the one in use.
int check_isa(const char* isa) {
  try {
    const bool ok = std::strcmp(cpu::isa_name(), isa) == 0;
    std::printf("in use: %s\n", cpu::isa_name());
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
  } catch (const std::runtime_error& error) {
    std::printf("%s\n", error.what());
    return std::strstr(error.what(), "not supported") != nullptr ? 77 : EXIT_FAILURE;
  }
}

}  // namespace
}  // namespace foca::test

int main(int argc, char** argv) {
  if (argc == 3) return foca::test::check_isa(argv[2]);
  return foca::test::run();
}
