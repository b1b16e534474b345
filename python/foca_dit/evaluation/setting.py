"""What all rows of one run share: model, sampler, noise, labels; and what a row hands back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from foca_dit.analysis.sampling import Scheduler, sample
from foca_dit.evaluation.cost import Cost, measured

BATCH = 128
"""Images per generation: caches decide per batch, so every row has to split them alike."""

CALIBRATION_SEED = 1000
CALIBRATION_IMAGES = 4


class Absent(Exception):
    """A row that cannot be had here; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What a rival made of a setting.

    Attributes:
        images: [B, C, H, W].
        cost: of all batches together.
        batches: how many there were.
        details: what was chosen (thresholds, intervals, placed steps), for the JSON.
        nbytes: bytes that the cache held at the end of a batch; None: not known.
    """

    images: torch.Tensor
    cost: Cost
    batches: int = 1
    details: dict[str, Any] = field(default_factory=dict)
    nbytes: int | None = None


@dataclass(frozen=True, eq=False)
class Setting:
    """A class-conditional flow model, a sampler and a set of seeds.

    Args:
        model: `DiTTransformer2DModel`, without a cache.
        shift: of the flow-matching schedule.
        steps: denoising steps.
        guidance_scale: classifier-free guidance; 1: none.
        seed: of the noise.
        images: how many.
        memory: what rivals calibrated, by name; shared by settings that differ in seed only.
        tick: called after every model call, for a progress bar.
    """

    model: torch.nn.Module
    shift: float = 1.0
    steps: int = 50
    guidance_scale: float = 1.0
    seed: int = 0
    images: int = 16
    memory: dict[str, Any] = field(default_factory=dict)
    tick: Callable[[], Any] | None = None

    @cached_property
    def noise(self) -> torch.Tensor:
        """[B, C, H, W]."""
        config: Any = self.model.config
        shape = (self.images, config.in_channels, config.sample_size, config.sample_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.seed))

    @cached_property
    def labels(self) -> torch.Tensor:
        """int64 [B], the classes in turn."""
        config: Any = self.model.config
        return torch.arange(self.images) % int(config.num_embeds_ada_norm)

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the Euler sampler, steps + 1 of them, the last 0."""
        scheduler = self.euler()
        scheduler.set_timesteps(self.steps)
        return tuple(scheduler.sigmas.tolist())

    def euler(self) -> Any:
        """The sampler that all caches run under."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler(shift=self.shift)

    def calibration(self) -> Setting:
        """The same setting on a few other seeds, for rivals that calibrate."""
        return Setting(
            self.model,
            self.shift,
            self.steps,
            self.guidance_scale,
            CALIBRATION_SEED,
            CALIBRATION_IMAGES,
            self.memory,
        )

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for all seeds and budgets."""
        if name not in self.memory:
            self.memory[name] = make()
        return self.memory[name]

    def draw(
        self,
        model: torch.nn.Module | None = None,
        scheduler: Scheduler | None = None,
        steps: int | None = None,
        begin: Callable[[], Any] | None = None,
        **details: Any,
    ) -> Outcome:
        """Generates all images and measures it.

        Args:
            model: stands in for the setting's model (a copy with a cache).
            scheduler: None: Euler.
            steps: None: the setting's.
            begin: called before every batch, for caches that do not notice a new generation.
            details: kept in the outcome.
        """
        chosen = self.model if model is None else model
        batches = list(zip(self.noise.split(BATCH), self.labels.split(BATCH), strict=True))
        images = []
        with measured(chosen) as cost:
            for noise, labels in batches:
                if begin is not None:
                    begin()
                images.append(
                    sample(
                        chosen,
                        scheduler or self.euler(),
                        noise,
                        labels,
                        steps or self.steps,
                        self.guidance_scale,
                        self._ticking,
                    )
                )
        return Outcome(torch.cat(images), cost, len(batches), details)

    def _ticking(self, timesteps: Any) -> Any:
        for timestep in timesteps:
            yield timestep
            if self.tick is not None:
                self.tick()
