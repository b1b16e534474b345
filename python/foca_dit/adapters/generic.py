"""Tables for the other transformers of diffusers: granularities `stack` and `output`.

Where the blocks and their streams are is read off the metadata that diffusers registers for block
classes; what that does not tell stands in an entry here, one for each class.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from foca_dit.adapters.conditioning import extracts
from foca_dit.adapters.spec import BlockGroup, ModelSpec, Tokens

_BARE = ("hidden_states",)
_TEXT_FIRST = ("encoder_hidden_states", "hidden_states")


def _list(path: str, returns: tuple[str, ...] = _BARE, tokens: Tokens = "all") -> BlockGroup:
    return BlockGroup(path, "hidden_states", returns, tokens=tokens)


# Pipelines call these classes with a time between 0 and 1.
_UNIT = {"timestep_scale": 1.0}
# They are called with 1 - sigma, or with the timesteps of a scheduler with inverted sigmas.
_UPWARDS = {"time_runs_up": True}

# What the signature of a class's `forward` and the metadata of its blocks do not tell: the fields
# of `ModelSpec`. `groups`: its blocks are not registered, or their metadata does not say all.
KNOWN: dict[str, dict[str, Any]] = {
    "AceStepTransformer1DModel": _UNIT,
    "BriaFibo2Transformer2DModel": _UNIT,
    # Its single blocks run on text and image in one tensor, text first.
    "ChromaTransformer2DModel": {
        "groups": (
            _list("transformer_blocks", _TEXT_FIRST),
            _list("single_transformer_blocks", tokens="last"),
        ),
        **_UNIT,
    },
    # Cosmos 1 is called with log(sigma) / 4, which its scheduler tells.
    "CosmosTransformer3DModel": {"groups": (_list("transformer_blocks"),), **_UNIT},
    "ErnieImageTransformer2DModel": {"groups": (BlockGroup("layers", "x", ("x",)),)},
    # The image's own blocks, then blocks on image, reference images and text; the text's own blocks
    # and those of reference images run at every step.
    "Flux3Transformer2DModel": {
        "groups": (
            _list("mode_blocks.image"),
            _list("single_transformer_blocks", _TEXT_FIRST, tokens="first"),
        ),
        **_UNIT,
    },
    "Ideogram4Transformer2DModel": {"groups": (_list("layers"),), **_UNIT, **_UPWARDS},
    "Kandinsky5Transformer3DModel": {
        "groups": (BlockGroup("visual_transformer_blocks", "visual_embed", ("visual_embed",)),)
    },
    # Spatial and temporal blocks take turns, tokens are regrouped.
    "LatteTransformer3DModel": {"groups": ()},
    "LongCatAudioDiTTransformer": {**_UNIT, **_UPWARDS},
    # Its refiners run at every step.
    "Lumina2Transformer2DModel": {"groups": (_list("layers"),), **_UNIT, **_UPWARDS},
    "LuminaNextDiT2DModel": {**_UNIT, **_UPWARDS},
    "MochiTransformer3DModel": _UPWARDS,
    # Its decoder blocks start from the stream's beginning.
    "MotifVideoTransformer3DModel": {"groups": ()},
    "NucleusMoEImageTransformer2DModel": _UNIT,
    "OmniGenTransformer2DModel": {**_UNIT, **_UPWARDS},
    "PRXTransformer2DModel": {"groups": (_list("blocks"),), **_UNIT},
    # Its first step keeps keys and values; the later ones run on fewer tokens.
    "QwenImage21Transformer2DModel": {
        "groups": (_list("transformer_blocks"),),
        "writes": None,
        **_UNIT,
    },
    "SanaTransformer2DModel": {"groups": (_list("transformer_blocks"),)},
    "SanaVideoTransformer3DModel": {"groups": (_list("transformer_blocks"),)},
    "SkyReelsV2Transformer3DModel": {"groups": (_list("blocks"),)},
    # atan(sigma) 2 / pi, which its scheduler tells; without it near sigma / (1 + sigma)
    "StableAudioDiTModel": {"groups": (_list("transformer_blocks"),), **_UNIT},
    # Image and caption tokens of all samples, padded to one tensor; its refiners run at every step.
    "ZImageTransformer2DModel": {
        "groups": (BlockGroup("layers", "x", ("x",)),),
        **_UNIT,
        **_UPWARDS,
    },
}

# What diffusers calls latent and time in a transformer's `forward`.
_CALLED = (("hidden_states", "timestep"), ("hidden_states", "timesteps"), ("x", "t"))


def generic_spec(model: torch.nn.Module) -> ModelSpec | None:
    """The table of a model of diffusers, or None if it is not called with a latent and a time."""
    cls = type(model)
    parameters = inspect.signature(cls.forward).parameters
    called = [names for names in _CALLED if set(names) <= set(parameters)]
    if not called:
        return None
    sample, timestep = called[0]
    facts: dict[str, Any] = {
        "class_name": cls.__name__,
        "sample": sample,
        "timestep": timestep,
        "must_be_none": tuple(
            name for name in parameters if "controlnet" in name and not name.endswith("_repeat")
        ),
    }
    if "kv_cache_mode" in parameters:
        facts["writes"] = extracts
    for base in reversed(cls.__mro__):
        facts |= KNOWN.get(base.__name__, {})
    if "groups" not in facts:
        facts["groups"] = _registered_groups(model)
    return ModelSpec(**facts)


def _registered_groups(model: torch.nn.Module) -> tuple[BlockGroup, ...]:
    """One group for each list of blocks, if diffusers' metadata covers all lists; else none.

    A list of other modules beside them may feed something in between the blocks.
    """
    from diffusers.hooks._helpers import TransformerBlockRegistry

    groups = []
    for path, blocks in model.named_children():
        if not isinstance(blocks, torch.nn.ModuleList) or len(blocks) == 0:
            continue
        classes = {type(block) for block in blocks}
        try:
            (metadata,) = (TransformerBlockRegistry.get(cls) for cls in classes)
        except ValueError:  # not registered, or blocks of several classes
            return ()
        hidden, text = (
            metadata.hidden_states_argument_name,
            (metadata.encoder_hidden_states_argument_name),
        )
        places = {metadata.return_hidden_states_index: hidden}
        if metadata.return_encoder_hidden_states_index is not None:
            places[metadata.return_encoder_hidden_states_index] = text
        groups.append(BlockGroup(path, hidden, tuple(places[i] for i in sorted(places))))
    return tuple(groups)
