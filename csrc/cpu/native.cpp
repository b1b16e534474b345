// Prints the instruction set whose kernels this machine runs: what FOCA_CPU_ISAS=native builds.
#include <cstdio>

#include "cpu/processor.h"

int main() {
  for (const foca::cpu::Isa& isa : foca::cpu::isas()) {
    if (isa.supported && isa.suits) return std::fputs(isa.name, stdout) < 0;
  }
}
