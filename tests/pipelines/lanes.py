"""An unfused reference for any order of calls: the paper's recursion around single modules.

The cache has to find out by itself which step and which guidance branch a call belongs to. Here the
test says so: a *script* names the lane of every call of the model, and a lane's n-th call is its
step n. Nothing is shared with the code under test.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from cases import BY_NAME
from literal import LiteralFoCa

from foca_dit import FoCaCacheConfig

# An image and a video model: those that what follows is shown on where not every model is cheap.
IMAGE_AND_VIDEO = (BY_NAME["flux"], BY_NAME["wan"])
FULL_STEPS = (0, 1, 2, 6, 10, 14, 18, 22, 26)
# Histories as exact as the features: what is compared is the order of operations.
PAPER = FoCaCacheConfig(preset="paper", cache_interval=4, history_dtype=torch.float32)
DIT = {"transformer_blocks": ("attn1", "ff")}
FLUX = {
    "transformer_blocks": ("attn", "ff", "ff_context"),
    "single_transformer_blocks": ("proj_out",),
}


def cases(*names: str) -> pytest.MarkDecorator:
    """Parametrises `case` by models: an image and a video model, or those named."""
    chosen = [BY_NAME[name] for name in names] if names else IMAGE_AND_VIDEO
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


class Lanes:
    """Puts the oracle around modules of every block of a model.

    Args:
        model: changed in place, for good.
        wrapped: per block list, the modules with an output.
        script: the lane of every call of the model, in order; a new lane starts afresh.
        full_steps: the steps of a lane at which modules run.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        wrapped: dict[str, tuple[str, ...]],
        script: Iterable[Any],
        full_steps: Sequence[int] = FULL_STEPS,
    ) -> None:
        self.calls, self.call = [], -1
        steps: Counter[Any] = Counter()
        for lane in script:
            self.calls.append((lane, steps[lane], steps[lane] in full_steps))
            steps[lane] += 1
        model.register_forward_pre_hook(self._next)
        for path, names in wrapped.items():
            for block in model.get_submodule(path).children():
                for name in names:
                    if isinstance(getattr(block, name, None), torch.nn.Module):
                        self._wrap(block.get_submodule(name))

    @property
    def skipped(self) -> int:
        return sum(not full for _, _, full in self.calls)

    def _next(self, module: torch.nn.Module, args: Any) -> None:
        self.call += 1
        assert self.call < len(self.calls), "the script is shorter than the generation"

    def finished(self) -> bool:
        return self.call == len(self.calls) - 1

    def _wrap(self, module: torch.nn.Module) -> None:
        run: Callable[..., Any] = module.forward
        recursions: dict[Any, dict[int, LiteralFoCa]] = defaultdict(dict)
        shape: dict[str, Any] = {}

        def forward(*args: Any, **kwargs: Any) -> Any:
            lane, step, full = self.calls[self.call]
            if not full:
                values = [
                    recursions[lane][i].forecast(shape["dtype"]) if i in recursions[lane] else None
                    for i in range(shape["count"])
                ]
                return tuple(values) if shape["tuple"] else values[0]
            output = run(*args, **kwargs)
            values = list(output) if isinstance(output, tuple) else [output]
            shape.update(tuple=isinstance(output, tuple), count=len(values), dtype=values[0].dtype)
            for i, value in enumerate(values):
                if value is not None:
                    recursions[lane].setdefault(i, LiteralFoCa()).computed(step, value)
            return output

        module.forward = forward  # type: ignore[method-assign]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for float32's rounding, which forecasts and samplers amplify."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4 * expected.abs().max().item())
