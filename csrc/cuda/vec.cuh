// Loads and stores of kVec elements as float32: 16-byte accesses where kVec elements fill them, one
// element where kVec is 1. The caller guarantees 16-byte alignment for kVec > 1.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace foca::cuda {

// 16 bytes of the narrowest type among the tensors that are walked together.
template <typename... T>
constexpr int vec_size() {
  return ((sizeof(T) == 2) || ...) ? 8 : 4;
}

// The widest access that divides kVec elements of T: 16 bytes, or 8 for four 16-bit elements.
template <typename T, int kVec>
struct Words {
  static constexpr int kBytes = kVec * static_cast<int>(sizeof(T));
  static constexpr bool kWide = kBytes % 16 == 0;
  using Word = typename std::conditional<kWide, uint4, uint2>::type;
  static constexpr int kCount = kBytes / static_cast<int>(sizeof(Word));
  static_assert(kBytes % sizeof(Word) == 0, "whole words");
  union {
    Word words[kCount];
    T elements[kVec];
  };
  __device__ Words() {}
};

template <typename T>
struct Words<T, 1> {
  T elements[1];
};

// Memory as it is, before conversion: kernels load all they need first and convert afterwards.
template <typename T, int kVec>
__device__ __forceinline__ void load_words(Words<T, kVec>& dst, const T* src) {
  if constexpr (kVec == 1) {
    dst.elements[0] = *src;
  } else {
    using W = Words<T, kVec>;
#pragma unroll
    for (int i = 0; i < W::kCount; ++i) {
      dst.words[i] = reinterpret_cast<const typename W::Word*>(src)[i];
    }
  }
}

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// One rounding, to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

template <typename T, int kVec>
__device__ __forceinline__ void load(float (&dst)[kVec], const T* src) {
  Words<T, kVec> raw;
  load_words(raw, src);
#pragma unroll
  for (int i = 0; i < kVec; ++i) dst[i] = to_float(raw.elements[i]);
}

template <typename T, int kVec>
__device__ __forceinline__ void store(T* dst, const float (&src)[kVec]) {
  Words<T, kVec> raw;
#pragma unroll
  for (int i = 0; i < kVec; ++i) raw.elements[i] = from_float<T>(src[i]);
  if constexpr (kVec == 1) {
    *dst = raw.elements[0];
  } else {
    using W = Words<T, kVec>;
#pragma unroll
    for (int i = 0; i < W::kCount; ++i) {
      reinterpret_cast<typename W::Word*>(dst)[i] = raw.words[i];
    }
  }
}

}  // namespace foca::cuda
