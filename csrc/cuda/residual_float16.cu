// forecast_residual for x of type float16.
#include "cuda/residual.cuh"

namespace foca::cuda {
FOCA_DECLARE_RESIDUAL(, __half)
}  // namespace foca::cuda
