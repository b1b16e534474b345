"""The table of supported transformer classes. Adding a model is adding an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from foca_dit.adapters.spec import BlockGroup, Feature, ModelSpec


def _dit_conditioning(block: torch.nn.Module, arguments: Mapping[str, Any]) -> torch.Tensor:
    """Every DiT block embeds timestep and class by itself."""
    timestep = arguments["timestep"]
    if timestep.stride(0) == 0:
        timestep = timestep[:1]  # one timestep, expanded to the batch: embed it once
    embedding = block.get_submodule("norm1.emb")(
        timestep,
        arguments["class_labels"],
        hidden_dtype=arguments["hidden_states"].dtype,
    )
    return F.silu(embedding)


SPECS: dict[str, ModelSpec] = {
    spec.class_name: spec
    for spec in (
        ModelSpec(
            class_name="DiTTransformer2DModel",
            groups=(
                BlockGroup(
                    path="transformer_blocks",
                    hidden="hidden_states",
                    returns=("hidden_states",),
                    # Rows of AdaLayerNormZero: shift, scale, gate of attn1, then of ff.
                    features=(
                        Feature("attn1", modulation="norm1.linear", chunk=2, chunks=6),
                        Feature("ff", modulation="norm1.linear", chunk=5, chunks=6),
                    ),
                ),
            ),
            conditioning=_dit_conditioning,
        ),
        ModelSpec(
            class_name="FluxTransformer2DModel",
            # The text stream is rebuilt at every step and dropped after the last block: a skipped
            # step needs no forecast of it.
            groups=(
                BlockGroup(
                    path="transformer_blocks",
                    hidden="hidden_states",
                    returns=("encoder_hidden_states", "hidden_states"),
                ),
                BlockGroup(
                    path="single_transformer_blocks",
                    hidden="hidden_states",
                    returns=("encoder_hidden_states", "hidden_states"),
                ),
            ),
            timestep_scale=1.0,
            must_be_none=("controlnet_block_samples", "controlnet_single_block_samples"),
        ),
    )
}


def find_spec(model: torch.nn.Module) -> ModelSpec:
    """The table entry of a model's class.

    Raises:
        TypeError: a class that is not supported; the message lists those that are.
    """
    for base in type(model).__mro__:
        if base.__name__ in SPECS:
            return SPECS[base.__name__]
    raise TypeError(
        "foca_dit: argument 'model_or_pipeline': expected a pipeline or one of "
        f"{', '.join(SPECS)}, got {type(model).__name__}"
    )
