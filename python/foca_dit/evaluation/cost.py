"""What a generation costs: FLOPs, modules that really ran, seconds.

Nothing is assumed of a cache. Modules are counted where they cannot be bypassed: caches replace the
forward of an attention or of a block, so the hooks sit on the first linear layer inside. FLOPs are
those of the matrix products that ran, by the formulas of `torch.utils.flop_counter`; they are taken
where PyTorch's functions are called, because the counter itself sees every operator and would slow
a small model down by half. A test holds the two equal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import flop_counter


@dataclass
class Cost:
    """Summed over a run.

    Attributes:
        flops: of matrix products, attention and convolutions.
        attention: computed attention modules.
        feedforward: computed feed-forward modules.
        blocks: number of blocks of the model (0: it has none that are known).
        seconds: wall clock.
    """

    flops: int = 0
    attention: int = 0
    feedforward: int = 0
    blocks: int = 0
    seconds: float = 0.0

    @property
    def full_steps(self) -> float:
        """Computed modules in units of a whole model: a step that computes half of them is 0.5."""
        return (self.attention + self.feedforward) / (2 * self.blocks) if self.blocks else 0.0


class FlopMode(TorchFunctionMode):
    """Adds up the FLOPs of matrix products, by torch's formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _FORMULAS:
            self.flops += _FORMULAS[func](output, *args, **kwargs)
        return output


def _linear(output: Any, x: Any, weight: Any, bias: Any = None) -> int:
    rows = x.numel() // x.shape[-1]
    return int(flop_counter.mm_flop((rows, x.shape[-1]), (weight.shape[1], weight.shape[0])))


def _attention(output: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(flop_counter.sdpa_flop_count(query.shape, key.shape, value.shape))


def _convolution(output: Any, x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    return int(flop_counter.conv_flop_count(x.shape, weight.shape, output.shape))


def _product(output: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * int(output.numel()) * int(a.shape[-1])


_FORMULAS: dict[Any, Callable[..., int]] = {
    F.linear: _linear,
    F.scaled_dot_product_attention: _attention,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    torch.matmul: _product,
    torch.Tensor.matmul: _product,
    torch.Tensor.__matmul__: _product,
    torch.mm: _product,
    torch.bmm: _product,
}


@contextmanager
def measured(model: torch.nn.Module) -> Iterator[Cost]:
    """Measures what runs inside it.

    Args:
        model: whose blocks are counted; blocks may stand inside others, as caches put them.
    """
    attention, feedforward = _entries(model)
    cost = Cost(blocks=len(attention))
    handles = [module.register_forward_hook(_counter(cost, "attention")) for module in attention]
    handles += [
        module.register_forward_hook(_counter(cost, "feedforward")) for module in feedforward
    ]
    started = time.perf_counter()
    try:
        with FlopMode() as counted:
            yield cost
    finally:
        cost.seconds = time.perf_counter() - started
        cost.flops = counted.flops
        for handle in handles:
            handle.remove()


def _counter(cost: Cost, name: str) -> Callable[..., None]:
    def count(*_: Any) -> None:
        setattr(cost, name, getattr(cost, name) + 1)

    return count


def _entries(model: torch.nn.Module) -> tuple[list[torch.nn.Module], list[torch.nn.Module]]:
    """The first linear layer of every attention and of every feed-forward of diffusers' blocks."""
    attention: list[torch.nn.Module] = []
    feedforward: list[torch.nn.Module] = []
    for module in model.modules():
        query = getattr(getattr(module, "attn1", None), "to_q", None)
        feed = getattr(module, "ff", None) or getattr(module, "ffn", None)
        layers = getattr(feed, "net", None)
        if isinstance(query, torch.nn.Module) and isinstance(layers, torch.nn.ModuleList):
            attention.append(query)
            feedforward.append(next(m for m in layers.modules() if isinstance(m, torch.nn.Linear)))
    return attention, feedforward
