// The arithmetic between load and store, written once for every backend.
//
// V is `float` in a CUDA kernel and a vector of floats in a CPU kernel. Every function is a chain
// of single float32 operations in the written order; both compilers are told not to contract them
// into fused multiply-adds, so all backends round alike. Derivations: docs/method.md.
#pragma once

#if defined(__CUDACC__)
#define FOCA_INLINE __host__ __device__ __forceinline__
#else
// Always inlined and static: the CPU kernels are compiled once per instruction set, and a shared
// out-of-line copy could hand AVX-512 code to a machine without it.
#define FOCA_INLINE __attribute__((always_inline)) static inline
#endif

namespace foca::math {

// The scalars of one forecast-calibrate step, ready for `calibrate`.
struct CalibrateScalars {
  float half_h;      // h / 2
  float inv_h_prev;  // 1 / h_prev
};

FOCA_INLINE CalibrateScalars calibrate_scalars(float h, float h_prev) {
  return {0.5f * h, 1.0f / h_prev};
}

// Heun's corrector on the BDF2 predictor (FoCa, eqs. 6 to 8). The slope that the BDF2 formula gives
// at the predicted point is the first difference itself, so the predictor never has to be formed:
//   F_{k+1} = F_k + h/2 (D_anchor + (F_k - F_{k-1}) / h_prev)
template <typename V>
FOCA_INLINE V calibrate(V f_k, V f_km1, V d_anchor, CalibrateScalars s) {
  return f_k + s.half_h * (d_anchor + (f_k - f_km1) * s.inv_h_prev);
}

// One term of a weighted sum. The caller leaves out terms whose weight is zero: their memory may be
// unset (NaN), and not reading it costs no bandwidth.
template <typename V>
FOCA_INLINE V add_term(V acc, float weight, V value) {
  return acc + weight * value;
}

// One feature of the collapsed skip: x + gate * feature.
template <typename V>
FOCA_INLINE V add_gated(V x, V gate, V feature) {
  return x + gate * feature;
}

}  // namespace foca::math
