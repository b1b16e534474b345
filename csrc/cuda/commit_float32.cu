// commit for a history of type float32.
#include "cuda/commit.cuh"

namespace foca::cuda {
FOCA_DECLARE_COMMIT(, float)
}  // namespace foca::cuda
