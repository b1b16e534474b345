// commit for a history of type float16.
#include "cuda/commit.cuh"

namespace foca::cuda {
FOCA_DECLARE_COMMIT(, __half)
}  // namespace foca::cuda
