"""Fake kernels: what `torch.compile`, `torch.export` and FakeTensor see of the operators.

They run the checks that need no memory (dtype, device, shape, contiguity, gradient) and return
tensors of the right shape. Values and overlaps are checked by the real kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import checks
from .rules import FAKE

# Functions that share the checks of another one.
_LIKE = {
    "forecast_out": "forecast",
    "forecast_calibrate_rotate": "forecast_calibrate_tensor",
}


def kernel(function: str) -> Callable[..., Tensor | None]:
    """The fake kernel of an operator.

    Args:
        function: the name that its implementation has in every Python backend.

    Returns:
        A function of the operator's arguments: runs the checks; `forecast` alone returns a tensor.
    """
    check = getattr(checks, _LIKE.get(function, function))

    def fake(*args: Any, **kwargs: Any) -> Tensor | None:
        check(*args, mode=FAKE, **kwargs)
        return torch.empty_like(args[0][0]) if function == "forecast" else None

    return fake
