"""What all rows of one run share: model, sampler, noise, labels; and what a row hands back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

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
        images: [B, C, H, W], or [B, C, F, H, W] of a video model.
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
    """A class-conditional model, a sampler and a set of seeds.

    Args:
        model: without a cache.
        shift: of the flow-matching schedule, where no scheduler is given.
        steps: denoising steps.
        guidance_scale: classifier-free guidance; 1: none.
        seed: of the noise.
        images: how many.
        memory: what rivals calibrated, by name; shared by settings that differ in seed only.
        tick: called after every model call, for a progress bar.
        scheduler: diffusers scheduler that all caches run under, by its configuration; None: Euler
            steps of flow matching.
        shape: of one sample, (C, H, W) or (C, F, H, W); None: what the model's configuration says.
        tokens: what a video model is given for a class (`sample`).
    """

    model: torch.nn.Module
    shift: float = 1.0
    steps: int = 50
    guidance_scale: float = 1.0
    seed: int = 0
    images: int = 16
    memory: dict[str, Any] = field(default_factory=dict)
    tick: Callable[[], Any] | None = None
    scheduler: Any = None
    shape: tuple[int, ...] | None = None
    tokens: torch.Tensor | None = None

    @cached_property
    def noise(self) -> torch.Tensor:
        """[B, *shape]."""
        config: Any = self.model.config
        size = self.shape or (config.in_channels, config.sample_size, config.sample_size)
        return torch.randn((self.images, *size), generator=torch.Generator().manual_seed(self.seed))

    @cached_property
    def labels(self) -> torch.Tensor:
        """int64 [B], the classes in turn."""
        config: Any = self.model.config
        classes = config.num_embeds_ada_norm if self.tokens is None else len(self.tokens) - 1
        return torch.arange(self.images) % int(classes)

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of the Euler sampler, steps + 1 of them, the last 0.

        Raises:
            Absent: the model predicts noise.
        """
        self.require_flow()
        scheduler = self.sampler()
        scheduler.set_timesteps(self.steps)
        return tuple(scheduler.sigmas.tolist())

    def sampler(self) -> Any:
        """A new sampler of the kind that all caches run under."""
        if self.scheduler is not None:
            return type(self.scheduler).from_config(self.scheduler.config)
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler(shift=self.shift)

    @property
    def is_flow(self) -> bool:
        """Whether the model predicts the velocity of flow matching."""
        return not hasattr(self.sampler(), "alphas_cumprod")

    def require_flow(self) -> None:
        """For rivals whose arithmetic is that of flow matching.

        Raises:
            Absent: the model predicts noise.
        """
        if not self.is_flow:
            raise Absent("its arithmetic is that of flow matching; this model predicts noise")

    @property
    def blocks(self) -> torch.nn.ModuleList:
        """The blocks, for rivals that are written for those of `DiTTransformer2DModel`.

        Raises:
            Absent: the model is another one.
        """
        name = type(self.model).__name__
        if name != "DiTTransformer2DModel":
            raise Absent(f"written here for DiTTransformer2DModel's blocks, not {name}'s")
        blocks: Any = self.model.transformer_blocks
        return cast(torch.nn.ModuleList, blocks)

    def calibration(self) -> Setting:
        """The same setting on a few other seeds, for rivals that calibrate."""
        return dataclasses.replace(
            self, seed=CALIBRATION_SEED, images=CALIBRATION_IMAGES, tick=None
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
            scheduler: None: the setting's.
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
                        scheduler or self.sampler(),
                        noise,
                        labels,
                        steps or self.steps,
                        self.guidance_scale,
                        self._ticking,
                        self.tokens,
                    )
                )
        return Outcome(torch.cat(images), cost, len(batches), details)

    def _ticking(self, timesteps: Any) -> Any:
        for timestep in timesteps:
            yield timestep
            if self.tick is not None:
                self.tick()
