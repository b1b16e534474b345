"""What the tests of a model need to know: how to build it small, how to call it, what to expect."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

WIDTH = 32  # of the stream, in every case
MODULATIONS = (
    "norm1.linear",
    "norm.linear",
    "norm2.linear",
    "mod",
    "scale_shift_table",
    "time_proj",
)


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        name: of the test.
        build: makes the model; its modulation is then randomised.
        shape: of the latent, without the batch.
        features: cached features (image stream).
        slots: histories; fewer than features where sums over features are kept.
        tokens: tokens of the image stream.
        inputs: (batch, generator) -> the arguments that stay the same.
        wrapped: per block list, all modules with an output (text included), for the literal test.
        timestep: (time in 1 .. 0, batch) -> the model's timestep.
        modular: whether single modules can be forecast.
        time_in_dtype: whether the model wants its timestep in its own dtype.
    """

    name: str
    build: Callable[[], torch.nn.Module]
    shape: tuple[int, ...]
    features: int
    tokens: int
    inputs: Callable[[int, torch.Generator], dict[str, Any]]
    wrapped: dict[str, tuple[str, ...]]
    slots: int = 0
    modular: bool = False
    time_in_dtype: bool = False
    timestep: Callable[[float, int], torch.Tensor] = field(
        default=lambda t, batch: torch.full((batch,), 1000 * t)
    )

    def model(self, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        model = self.build().eval()
        generator = torch.Generator().manual_seed(seed + 1)
        for name, parameter in model.named_parameters():
            table = "scale_shift_table" in name
            if table or (name.endswith("bias") and any(part in name for part in MODULATIONS)):
                parameter.data.normal_(0, 0.5, generator=generator)
        return model

    @torch.no_grad()
    def draw(
        self,
        model: torch.nn.Module,
        steps: int = 12,
        batch: int = 2,
        seed: int = 0,
        branches: int = 1,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        **extra: Any,
    ) -> torch.Tensor:
        """A plain Euler loop; everything random is fixed by the seed.

        `branches` calls a step, each with other inputs, as guidance makes them; `dtype`: the
        model's compute dtype, if its weights have another.
        """
        generator = torch.Generator().manual_seed(seed)
        dtype = dtype or next(p for p in model.parameters() if p.is_floating_point()).dtype
        x = torch.randn(batch, *self.shape, generator=generator).to(device, dtype)
        calls = [self.call(batch, generator, dtype) | extra for _ in range(branches)]
        calls = tree_map_only(torch.Tensor, lambda t: t.to(device), calls)
        for now, after in itertools.pairwise(torch.linspace(1, 0, steps + 1).tolist()):
            velocity = sum(self.velocity(model, x, now, call) for call in calls) / branches
            x = x + (after - now) * velocity
        return x

    def call(self, batch: int, generator: torch.Generator, dtype: torch.dtype) -> dict[str, Any]:
        """The arguments of a call that stay the same."""
        return {
            key: value.to(dtype)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
            else value
            for key, value in self.inputs(batch, generator).items()
        }

    @torch.no_grad()
    def velocity(
        self, model: torch.nn.Module, x: torch.Tensor, time: float, call: dict[str, Any]
    ) -> torch.Tensor:
        """The model's output at a time in 1 .. 0, in x's shape."""
        timestep = self.timestep(time, len(x)).to(x.device)
        if self.time_in_dtype:
            timestep = timestep.to(x.dtype)
        output = model(hidden_states=x, timestep=timestep, return_dict=False, **call)[0]
        return output[tuple(slice(0, size) for size in x.shape)]


def flow(t: float, batch: int) -> torch.Tensor:
    return torch.full((batch,), t)


def randn(*shape: int) -> Callable[[int, torch.Generator], torch.Tensor]:
    return lambda batch, generator: torch.randn(batch, *shape, generator=generator)


def inputs(fixed: dict[str, Any] | None = None, **drawn: Any) -> Any:
    return lambda batch, generator: {
        **{name: draw(batch, generator) for name, draw in drawn.items()},
        **{
            name: value(batch) if callable(value) else value
            for name, value in (fixed or {}).items()
        },
    }
