// The instruction sets that kernels are compiled for, and which of them this processor has.
#pragma once

namespace foca::cpu {

struct Isa {
  const char* name;
  bool supported;
  bool suits;  // whether it is the choice where it is supported
};

struct Isas {
  Isa best_first[4];

  const Isa* begin() const { return best_first; }
  const Isa* end() const { return best_first + 4; }
};

inline Isas isas() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool amd = __builtin_cpu_is("amd") != 0;
#else
  const bool avx2 = false, avx512 = false, amd = false;
#endif
  return {{{"avx512_nta", avx512, amd},
           {"avx512", avx512, true},
           {"avx2", avx2, true},
           {"generic", true, true}}};
}

}  // namespace foca::cpu
