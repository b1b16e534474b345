// Choice of the instruction set, once per process.
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"
#include "foca/cpu.h"

namespace foca::cpu {
namespace {

struct Candidate {
  const char* name;
  bool supported;
  bool suits;  // whether it is the choice where it is supported
  const KernelTable& (*table)();
};

const KernelTable& choose(const char* name) {
#if defined(FOCA_HAVE_X86_KERNELS)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
  const Candidate candidates[] = {
#if defined(FOCA_HAVE_X86_KERNELS)
      {"avx512_nta", avx512, __builtin_cpu_is("amd") != 0, kernels_avx512_nta},
      {"avx512", avx512, true, kernels_avx512},
      {"avx2", avx2, true, kernels_avx2},
#endif
      {"generic", true, true, kernels_generic},
  };
  std::string known;
  for (const Candidate& candidate : candidates) {
    if (name == nullptr) {
      if (candidate.supported && candidate.suits) return candidate.table();
      continue;
    }
    if (std::string(name) == candidate.name) {
      if (candidate.supported) return candidate.table();
      throw std::runtime_error("foca: instruction set '" + std::string(name) +
                               "' (FOCA_CPU_ISA) is not supported by this processor");
    }
    known += (known.empty() ? "" : ", ") + std::string(candidate.name);
  }
  throw std::runtime_error("foca: unknown instruction set '" + std::string(name) +
                           "' (FOCA_CPU_ISA); known here: " + known);
}

std::atomic<const KernelTable*> active{nullptr};

}  // namespace

const KernelTable& kernels() {
  const KernelTable* table = active.load(std::memory_order_acquire);
  if (table == nullptr) {
    // Threads that race here compute the same answer.
    const char* name = std::getenv("FOCA_CPU_ISA");
    table = &choose(name != nullptr && *name != '\0' ? name : nullptr);
    active.store(table, std::memory_order_release);
  }
  return *table;
}

const char* isa_name() { return kernels().name; }

void set_isa(const char* name) { active.store(name == nullptr ? nullptr : &choose(name)); }

}  // namespace foca::cpu
