// commit for a history of type bfloat16.
#include "cuda/commit.cuh"

namespace foca::cuda {
FOCA_DECLARE_COMMIT(, __nv_bfloat16)
}  // namespace foca::cuda
