// Element types and limits shared by every backend. Nothing here, or in any public header, needs
// torch.
#pragma once

#include <cstdint>

namespace foca {

// The same limits stand in foca_kernels/schemas.py.
constexpr int kMaxHistory = 8;     // K: tensors kept per feature
constexpr int kMaxFeatures = 256;  // L: features in one collapsed skip
constexpr int kMaxTerms = 2048;    // L * K: what fits in the by-value arguments of one CUDA launch
constexpr int kMaxStats = 8;       // R: rows of a transition that are reduced, not stored

// All arithmetic is float32; these are the types in memory.
enum class ScalarType : std::int8_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

constexpr int element_size(ScalarType type) { return type == ScalarType::kFloat32 ? 4 : 2; }

}  // namespace foca
