"""foca_kernels: the operators behind feature-caching forecasters, as ``torch.ops.foca.*``.

A forecaster keeps a small history of tensors per feature. ``commit_`` folds a computed feature
into it, ``forecast`` and ``forecast_residual_`` read weighted sums of it, and
``forecast_calibrate`` is one step of FoCa written as a step. The package knows tensors and scalars;
time and models are the business of ``foca_dit``.

``FOCA_BACKEND`` (auto, cpp, triton or reference) chooses the backend when the package is imported;
:func:`backend_report` says what serves each device.
"""

from .ops import (
    commit_,
    commit_list_,
    forecast,
    forecast_calibrate,
    forecast_calibrate_list,
    forecast_calibrate_rotate,
    forecast_calibrate_tensor,
    forecast_residual_,
    forecast_residual_packed_,
)
from .registry import backend_report, built
from .schemas import MAX_FEATURES, MAX_HISTORY, MAX_STATS, SCHEMAS

__all__ = [
    "MAX_FEATURES",
    "MAX_HISTORY",
    "MAX_STATS",
    "SCHEMAS",
    "backend_report",
    "built",
    "commit_",
    "commit_list_",
    "forecast",
    "forecast_calibrate",
    "forecast_calibrate_list",
    "forecast_calibrate_rotate",
    "forecast_calibrate_tensor",
    "forecast_residual_",
    "forecast_residual_packed_",
]
