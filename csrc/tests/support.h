// What the tests share: typed buffers with guard bytes, exact decoding, the tolerance, and cases.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "foca/args.h"

namespace foca::test {

inline int failures = 0;

inline void expect(bool ok, const std::string& what) {
  if (ok) return;
  if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

inline const ScalarType kTypes[] = {ScalarType::kFloat32, ScalarType::kFloat16,
                                    ScalarType::kBFloat16};

inline const char* name(ScalarType type) {
  const char* names[] = {"float32", "float16", "bfloat16"};
  return names[static_cast<int>(type)];
}

// The exact value of a bit pattern, written without the kernels' tricks.
inline double decode(ScalarType type, std::uint32_t bits) {
  const int exponent_bits = type == ScalarType::kFloat16 ? 5 : 8;
  const int mantissa_bits = type == ScalarType::kFloat32   ? 23
                            : type == ScalarType::kFloat16 ? 10
                                                           : 7;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
  const double mantissa = bits & ((1u << mantissa_bits) - 1);
  const double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return mantissa == 0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

// Half the distance between neighbours at `value`.
inline double half_ulp(ScalarType type, double value) {
  const int digits = type == ScalarType::kFloat32 ? 24 : type == ScalarType::kFloat16 ? 11 : 8;
  const int smallest = type == ScalarType::kFloat16    ? -24
                       : type == ScalarType::kBFloat16 ? -133
                                                       : -149;
  const int exponent = value == 0 ? smallest : std::ilogb(value) - digits + 1;
  return std::ldexp(0.5, std::max(exponent, smallest));
}

// A result may be half a step of its type off, and a few float32 steps of the sum of magnitudes.
inline bool close(ScalarType type, double got, double expected, double magnitude) {
  if (std::isnan(expected)) return std::isnan(got);
  return std::fabs(got - expected) <= 1.001 * half_ulp(type, expected) + 8 * 0x1p-24 * magnitude;
}

// numel elements that start `offset` elements after a 64-byte boundary, between guard bytes.
class Buffer {
 public:
  Buffer(ScalarType type, std::int64_t numel, int offset = 0)
      : type_(type), numel_(numel), offset_(offset), lines_((numel + offset) * size() / 64 + 3) {
    std::memset(lines_.data(), kFill, lines_.size() * 64);
  }

  // Normal numbers of moderate size; every bit pattern of the mantissa.
  static Buffer random(ScalarType type, std::int64_t numel, std::mt19937& rng, int offset = 0) {
    Buffer buffer(type, numel, offset);
    for (std::int64_t i = 0; i < numel; ++i) {
      const std::uint32_t bits = rng();
      if (type == ScalarType::kFloat32) {
        buffer.set(i, (bits & 0x807fffff) | (120 + (bits >> 23 & 7)) << 23);
      } else if (type == ScalarType::kFloat16) {
        buffer.set(i, (bits & 0x83ff) | (10 + (bits >> 10 & 7)) << 10);
      } else {
        buffer.set(i, (bits & 0x807f) | (120 + (bits >> 7 & 7)) << 7);
      }
    }
    return buffer;
  }

  void* data() { return lines_[1].bytes + offset_ * size(); }
  const void* data() const { return lines_[1].bytes + offset_ * size(); }
  std::int64_t numel() const { return numel_; }
  ScalarType type() const { return type_; }
  std::size_t nbytes() const { return numel_ * size(); }

  std::uint32_t bits(std::int64_t i) const {
    std::uint32_t value = 0;
    std::memcpy(&value, static_cast<const char*>(data()) + i * size(), size());
    return value;
  }
  void set(std::int64_t i, std::uint32_t bits) {
    std::memcpy(static_cast<char*>(data()) + i * size(), &bits, size());
  }
  double operator[](std::int64_t i) const { return decode(type_, bits(i)); }
  bool same_bits(const Buffer& other) const {
    return nbytes() == other.nbytes() && std::memcmp(data(), other.data(), nbytes()) == 0;
  }
  bool guards_intact() const {
    const char* const begin = lines_.front().bytes;
    const char* const end = lines_.back().bytes + 64;
    const char* const first = static_cast<const char*>(data());
    const auto intact = [](char c) { return c == kFill; };
    return std::all_of(begin, first, intact) && std::all_of(first + nbytes(), end, intact);
  }

 private:
  static constexpr char kFill = 0x5a;
  struct alignas(64) Line {
    char bytes[64];
  };
  int size() const { return element_size(type_); }

  ScalarType type_;
  std::int64_t numel_;
  int offset_;
  std::vector<Line> lines_;  // a guard line, the elements, a guard line at least
};

inline std::vector<const void*> pointers(const std::vector<Buffer>& buffers) {
  std::vector<const void*> result;
  for (const Buffer& buffer : buffers) result.push_back(buffer.data());
  return result;
}

// Around the widths of every vector: 4, 8, 16, a group of 16 or 32, and a chunk of 16384.
inline const std::int64_t kSizes[] = {0,  1,  3,  4,  5,   7,    8,     9,    15,
                                      16, 17, 31, 33, 515, 4097, 16385, 50001};

inline std::vector<float> random_weights(int n, std::mt19937& rng, double zeros = 0.3) {
  std::uniform_real_distribution<double> uniform(-2, 2), coin(0, 1);
  std::vector<float> weights(n);
  for (float& w : weights) w = coin(rng) < zeros ? 0.0f : static_cast<float>(uniform(rng));
  return weights;
}

// Shapes [batch, rows, cols] and gate strides: broadcast over all, over rows, none.
struct ResidualCase {
  std::int64_t batch, rows, cols;
  enum Gates { kNone, kShared, kPerBatch, kFull } gates;
  std::int64_t gate_numel() const {
    return gates == kNone       ? 0
           : gates == kShared   ? cols
           : gates == kPerBatch ? batch * cols
                                : batch * rows * cols;
  }
  std::int64_t gate_index(std::int64_t i) const {
    const std::int64_t row = i / cols, col = i % cols;
    return gates == kShared ? col : gates == kPerBatch ? row / rows * cols + col : i;
  }
};
inline const ResidualCase kResidualCases[] = {
    {1, 1, 1, ResidualCase::kNone},        {3, 7, 5, ResidualCase::kNone},
    {2, 49, 192, ResidualCase::kNone},     {2, 3, 5, ResidualCase::kShared},
    {3, 49, 192, ResidualCase::kShared},   {3, 49, 192, ResidualCase::kPerBatch},
    {2, 2, 9001, ResidualCase::kPerBatch}, {2, 5, 64, ResidualCase::kFull},
    {2, 3, 9, ResidualCase::kFull},        {2, 0, 8, ResidualCase::kPerBatch},
};

inline ForecastResidualArgs residual_args(const ResidualCase& c, ScalarType x, ScalarType history,
                                          ScalarType gate, int features, int k,
                                          bool weights_per_feature) {
  ForecastResidualArgs args = {};
  args.x_dtype = x, args.history_dtype = history, args.gate_dtype = gate;
  args.features = features, args.k = k, args.weights_per_feature = weights_per_feature;
  args.batch = c.batch, args.rows = c.rows, args.cols = c.cols;
  const bool full = c.gates == ResidualCase::kFull;
  args.gate_row_stride = full ? c.cols : 0;
  args.gate_batch_stride = full ? c.rows * c.cols : c.gates == ResidualCase::kPerBatch ? c.cols : 0;
  return args;
}

inline int report() {
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace foca::test
