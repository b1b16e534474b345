"""Sampling a class-conditional diffusion transformer with a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch


class Scheduler(Protocol):
    """The part of a diffusers scheduler that sampling needs."""

    timesteps: torch.Tensor

    def set_timesteps(self, num_inference_steps: int) -> None: ...
    def step(self, model_output: Any, timestep: Any, sample: Any) -> Any: ...


@torch.inference_mode()
def sample(
    model: torch.nn.Module,
    scheduler: Scheduler,
    noise: torch.Tensor,
    labels: torch.Tensor,
    steps: int,
    guidance_scale: float = 1.0,
    progress: Any = None,
) -> torch.Tensor:
    """Denoises a batch.

    Args:
        model: a `DiTTransformer2DModel`-like module, `model(x, timestep=, class_labels=).sample`.
        scheduler: a diffusers scheduler; its timesteps are set here.
        noise: [B, C, H, W], the starting noise.
        labels: int64 [B], the class of each image.
        steps: number of denoising steps.
        guidance_scale: classifier-free guidance; above 1 the model runs on a batch of 2B, whose
            second half has the null class (the last row of the model's class table).
        progress: wraps the list of timesteps, as tqdm does; None: silent.

    Returns:
        The images, [B, C, H, W].
    """
    scheduler.set_timesteps(steps)
    guided = guidance_scale > 1
    if guided:
        config: Any = model.config
        null = torch.full_like(labels, int(config.num_embeds_ada_norm))
        labels = torch.cat([labels, null])
    x = noise
    timesteps: Iterable[torch.Tensor] = scheduler.timesteps
    for t in progress(timesteps) if progress else timesteps:
        batch = torch.cat([x, x]) if guided else x
        output = model(batch, timestep=t.expand(len(batch)), class_labels=labels).sample
        if guided:
            conditional, unconditional = output.chunk(2)
            output = torch.lerp(unconditional, conditional, guidance_scale)
        x = scheduler.step(output, t, x).prev_sample
    return x
