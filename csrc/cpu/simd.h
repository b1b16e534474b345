// A vector of floats as wide as the instruction set, and its loads and stores from memory types.
//
// Written with the vector extensions of GCC and Clang rather than left to the auto-vectoriser,
// which gives up on 16-bit types. Everything stands in a namespace named after the instruction set,
// because the same source is compiled several times and the linker must not merge the copies.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define FOCA_SIMD __attribute__((always_inline)) static inline

namespace foca::cpu::FOCA_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Float __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t Int __attribute__((vector_size(kLanes * 4)));
typedef std::uint32_t UInt __attribute__((vector_size(kLanes * 4)));
typedef std::uint16_t UShort __attribute__((vector_size(kLanes * 2)));

// Memory types. fp16 and bf16 are bit patterns here; arithmetic is always float32.
struct fp16 {
  std::uint16_t bits;
};
struct bf16 {
  std::uint16_t bits;
};

// How much of a vector is in memory: all of it, or the first `count` elements at the end of a
// range.
struct Full {
  static constexpr int count = kLanes;
};
struct Tail {
  int count;
};

// A full vector that is stored past the caches; its address is a multiple of its size in memory.
struct Streamed : Full {};

// How far ahead `load` asks for data, in bytes. The kernels read several streams at once, and the
// processor's own prefetchers stop at the end of a page: on an AMD EPYC with AVX-512 (2026-11) a
// residual of 24 streams gained 15 to 20 %, a commit 10 %; 512 was too near, data in cache lost
// nothing that could be told from noise. Past the end of a tensor the hint is without effect.
constexpr int kPrefetchBytes = 2048;

// Asks for data that is used once. prefetchnta keeps histories from pushing a model's weights and
// activations out of the caches: on an AMD EPYC (2026-11) a skipped step of 101 MB of histories
// (batch 64 of the demo's model at `module`) takes 14 % less time than with prefetcht0, one of 7 MB
// no more. On an Intel Xeon (Ice Lake, 2026-11) a residual of 2 or 8 features of 8M bf16 takes two
// to three times as long with it as with prefetcht0, which gains 10 % over none. So AVX-512 is
// compiled with each, and processor.h chooses. AVX2 has prefetcht0, and was measured with neither.
FOCA_SIMD void prefetch(const void* address) {
#if defined(FOCA_PREFETCH_NTA)
  __builtin_prefetch(address, 0, 0);
#else
  __builtin_prefetch(address, 0, 3);
#endif
}

template <typename Raw, typename Extent>
FOCA_SIMD Raw load_raw(const void* src, Extent extent) {
  Raw raw = {};
  __builtin_memcpy(&raw, src, sizeof(Raw) / kLanes * extent.count);
  return raw;
}

template <typename Raw, typename Extent>
FOCA_SIMD void store_raw(void* dst, Raw raw, Extent extent) {
  __builtin_memcpy(dst, &raw, sizeof(Raw) / kLanes * extent.count);
}

template <typename Raw>
FOCA_SIMD void store_raw(void* dst, Raw raw, Streamed) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Raw) == 64) return _mm512_stream_si512((__m512i*)dst, (__m512i)raw);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(Raw) == 32) return _mm256_stream_si256((__m256i*)dst, (__m256i)raw);
  if constexpr (sizeof(Raw) == 16) return _mm_stream_si128((__m128i*)dst, (__m128i)raw);
#endif
  __builtin_memcpy(dst, &raw, sizeof(Raw));
}

// Orders streamed stores before whatever tells another thread that they are done.
FOCA_SIMD void end_stream() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Between 16 and 32 bits per lane. Intrinsics, because GCC 12 splits __builtin_convertvector in
// two.
FOCA_SIMD UInt widen(UShort value) {
#if defined(__AVX512F__)
  return (UInt)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)value);
#elif defined(__AVX2__)
  return (UInt)_mm256_cvtepu16_epi32((__m128i)value);
#else
  return __builtin_convertvector(value, UInt);
#endif
}

// For values below 2^16.
FOCA_SIMD UShort narrow(UInt value) {
#if defined(__AVX512F__)
  return (UShort)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)value);
#elif defined(__AVX2__)
  return (UShort)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)value),
                                  _mm256_extracti128_si256((__m256i)value, 1));
#else
  return __builtin_convertvector(value, UShort);
#endif
}

FOCA_SIMD Float half_to_float(UShort half) {
#if defined(__AVX512F__)
  return (Float)_mm512_maskz_cvtph_ps(0xffff, (__m256i)half);
#elif defined(__AVX2__)
  return (Float)_mm256_cvtph_ps((__m128i)half);
#else
  const UInt bits = widen(half);
  // Shifting the exponent and mantissa into place leaves a value 2^112 too small, subnormals
  // included.
  const UInt shifted = (bits & 0x7fffu) << 13;
  const UInt scaled = (UInt)((Float)shifted * 0x1p112f);
  const UInt special = (UInt)(shifted >= 0x7c00u << 13) & 0x7f800000u;  // infinity or NaN
  return (Float)(scaled | special | (bits & 0x8000u) << 16);
#endif
}

FOCA_SIMD UShort float_to_half(Float value) {
#if defined(__AVX512F__)
  return (UShort)_mm512_maskz_cvtps_ph(0xffff, (__m512)value,
                                       _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (UShort)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const UInt bits = (UInt)value;
  const UInt magnitude = bits & 0x7fffffffu;
  // Normal results: move the exponent, then round to nearest even on the 13 dropped bits.
  const UInt normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 lets the float adder align and round the mantissa.
  const UInt subnormal = (UInt)((Float)magnitude + 0.5f) - 0x3f000000u;
  // The boundary is 2^16; values between 65504 and it round to 65504 or infinity on the normal
  // path.
  const Int is_small = (Int)(magnitude < (113u << 23));
  const Int is_large = (Int)(magnitude >= (143u << 23));
  const Int is_nan = (Int)(magnitude > 0x7f800000u);
  UInt result = is_small ? subnormal : normal;
  result = is_large ? (UInt{} + 0x7c00u) : result;
  result = is_nan ? (UInt{} + 0x7e00u) : result;
  return narrow(result | (bits >> 16 & 0x8000u));
#endif
}

FOCA_SIMD Float bfloat_to_float(UShort value) { return (Float)(widen(value) << 16); }

FOCA_SIMD UShort float_to_bfloat(Float value) {
  const UInt bits = (UInt)value;
  // Round to nearest even. The carry of a NaN's mantissa could end in infinity, so NaN goes apart.
  const UInt rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Int is_nan = (Int)(value != value);
  return narrow(is_nan ? (UInt{} + 0x7fc0u) : rounded);
}

// Of memory that is in cache, or was asked for otherwise.
template <typename Extent>
FOCA_SIMD Float load_near(const float* src, Extent extent) {
  return load_raw<Float>(src, extent);
}
template <typename Extent>
FOCA_SIMD Float load_near(const fp16* src, Extent extent) {
  return half_to_float(load_raw<UShort>(src, extent));
}
template <typename Extent>
FOCA_SIMD Float load_near(const bf16* src, Extent extent) {
  return bfloat_to_float(load_raw<UShort>(src, extent));
}

// One of a stream of loads.
template <typename T, typename Extent>
FOCA_SIMD Float load(const T* src, Extent extent) {
  prefetch(reinterpret_cast<const char*>(src) + kPrefetchBytes);
  return load_near(src, extent);
}

template <typename Extent>
FOCA_SIMD void store(float* dst, Float value, Extent extent) {
  store_raw(dst, value, extent);
}
template <typename Extent>
FOCA_SIMD void store(fp16* dst, Float value, Extent extent) {
  store_raw(dst, float_to_half(value), extent);
}
template <typename Extent>
FOCA_SIMD void store(bf16* dst, Float value, Extent extent) {
  store_raw(dst, float_to_bfloat(value), extent);
}

// Calls body(i, extent) for i = 0, kLanes, 2 kLanes, .. over n elements, the last extent perhaps
// partial.
template <typename Body>
FOCA_SIMD void for_each_vector(std::int64_t n, const Body& body) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, Full{});
  if (i < n) body(i, Tail{static_cast<int>(n - i)});
}

}  // namespace foca::cpu::FOCA_ISA
