"""A table for any transformer of diffusers, read off the metadata that diffusers keeps of blocks.

It has no features, so it serves granularities `stack` and `output`.
"""

from __future__ import annotations

import inspect

import torch

from foca_dit.adapters.spec import ModelSpec


def generic_spec(model: torch.nn.Module) -> ModelSpec | None:
    """The table of a model of diffusers, or None if it is not called with a latent and a time."""
    parameters = inspect.signature(type(model).forward).parameters
    if not {"hidden_states", "timestep"} <= set(parameters):
        return None
    return ModelSpec(class_name=type(model).__name__)
