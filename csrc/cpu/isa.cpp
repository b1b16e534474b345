// Choice of the instruction set, once per process.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"
#include "cpu/processor.h"
#include "foca/cpu.h"

namespace foca::cpu {

// Defined by cpu/kernels.cpp, which is compiled once for each. CMakeLists.txt lists them.
#define FOCA_BUILT(isa) const KernelTable& kernels_##isa();
FOCA_BUILT_ISAS
#undef FOCA_BUILT

namespace {

struct Built {
  const char* name;
  const KernelTable& (*table)();
};

const Built kBuilt[] = {
#define FOCA_BUILT(isa) {#isa, kernels_##isa},
    FOCA_BUILT_ISAS
#undef FOCA_BUILT
};

const KernelTable* built(const char* name) {
  for (const Built& each : kBuilt) {
    if (std::strcmp(each.name, name) == 0) return &each.table();
  }
  return nullptr;
}

[[noreturn]] void refuse(const std::string& problem) {
  std::string names;
  for (const Built& each : kBuilt) names += std::string(names.empty() ? "" : ", ") + each.name;
  throw std::runtime_error("foca: " + problem + "; built are: " + names);
}

const KernelTable& best() {
  for (bool suiting : {true, false}) {
    for (const Isa& isa : isas()) {
      const KernelTable* table = built(isa.name);
      if (table != nullptr && isa.supported && (isa.suits || !suiting)) return *table;
    }
  }
  refuse("no CPU kernels were built that this processor can run: build with FOCA_CPU_ISAS=all");
}

// FOCA_CPU_ISA's.
const KernelTable& named(const char* name) {
  const std::string quoted = "instruction set '" + std::string(name) + "' (FOCA_CPU_ISA)";
  for (const Isa& isa : isas()) {
    if (std::strcmp(isa.name, name) != 0) continue;
    if (!isa.supported) refuse(quoted + " is not supported by this processor");
    const KernelTable* table = built(name);
    if (table == nullptr) refuse(quoted + " was not built (FOCA_CPU_ISAS)");
    return *table;
  }
  refuse("unknown " + quoted);
}

const KernelTable& choose(const char* name) { return name == nullptr ? best() : named(name); }

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
