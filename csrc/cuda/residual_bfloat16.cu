// forecast_residual for x of type bfloat16.
#include "cuda/residual.cuh"

namespace foca::cuda {
FOCA_DECLARE_RESIDUAL(, __nv_bfloat16)
}  // namespace foca::cuda
