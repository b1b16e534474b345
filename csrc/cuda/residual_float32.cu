// forecast_residual for x of type float32.
#include "cuda/residual.cuh"

namespace foca::cuda {
FOCA_DECLARE_RESIDUAL(, float)
}  // namespace foca::cuda
