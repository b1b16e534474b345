"""Sampling a class-conditional diffusion transformer with a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch


class Scheduler(Protocol):
    """The part of a diffusers scheduler that sampling needs."""

    timesteps: torch.Tensor

    def set_timesteps(self, num_inference_steps: int) -> None: ...
    def step(self, model_output: Any, timestep: Any, sample: Any) -> Any: ...


def conditions(
    model: torch.nn.Module, labels: torch.Tensor, guided: bool, tokens: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """How a model is told the class of each sample.

    Args:
        model: takes `class_labels`, or, with tokens, `encoder_hidden_states`.
        labels: int64 [B].
        guided: append as many samples of the null class, the last one there is.
        tokens: [classes + 1, n, C], what stands in the place of a prompt's embedding.

    Returns:
        The keyword argument, [B, ..] or [2B, ..].
    """
    if guided:
        config: Any = model.config
        null = int(config.num_embeds_ada_norm) if tokens is None else len(tokens) - 1
        labels = torch.cat([labels, torch.full_like(labels, null)])
    return {"class_labels": labels} if tokens is None else {"encoder_hidden_states": tokens[labels]}


def predict(
    model: torch.nn.Module,
    x: torch.Tensor,
    timestep: torch.Tensor,
    told: Mapping[str, torch.Tensor],
    guidance_scale: float,
) -> torch.Tensor:
    """A model's prediction, guided where the scale is above 1: then it runs on a batch of 2B.

    Args:
        x: [B, ..].
        timestep: a scalar.
        told: what `conditions` returns, guided or not as the scale is.

    Returns:
        [B, ..].
    """
    guided = guidance_scale > 1
    batch = torch.cat([x, x]) if guided else x
    output: torch.Tensor = model(batch, timestep=timestep.expand(len(batch)), **told).sample
    if not guided:
        return output
    conditional, unconditional = output.chunk(2)
    return torch.lerp(unconditional, conditional, guidance_scale)


@torch.inference_mode()
def sample(
    model: torch.nn.Module,
    scheduler: Scheduler,
    noise: torch.Tensor,
    labels: torch.Tensor,
    steps: int,
    guidance_scale: float = 1.0,
    progress: Any = None,
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Denoises a batch.

    Args:
        model: a `DiTTransformer2DModel`-like module, `model(x, timestep=, class_labels=).sample`;
            with tokens a video transformer, `model(x, timestep=, encoder_hidden_states=).sample`.
        scheduler: a diffusers scheduler; its timesteps are set here.
        noise: [B, C, H, W] or [B, C, F, H, W], the starting noise.
        labels: int64 [B], the class of each image.
        steps: number of denoising steps.
        guidance_scale: classifier-free guidance; above 1 the model runs on a batch of 2B, whose
            second half has the null class (the last row of the model's class table).
        progress: wraps the list of timesteps, as tqdm does; None: silent.
        tokens: [classes + 1, n, C], what a video transformer is given for a class; the last: none.

    Returns:
        The samples, of the noise's shape.
    """
    scheduler.set_timesteps(steps)
    told = conditions(model, labels, guidance_scale > 1, tokens)
    x = noise
    timesteps: Iterable[torch.Tensor] = scheduler.timesteps
    for t in progress(timesteps) if progress else timesteps:
        x = scheduler.step(predict(model, x, t, told, guidance_scale), t, x).prev_sample
    return x
