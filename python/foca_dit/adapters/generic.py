"""Tables for the other transformers of diffusers: granularities `stack` and `output`.

Where the blocks and their streams are is read off the metadata that diffusers registers for block
classes, or, for classes that it does not register, stands in a line here.
"""

from __future__ import annotations

import inspect

import torch

from foca_dit.adapters.spec import BlockGroup, ModelSpec, Tokens

_BARE = ("hidden_states",)
_TEXT_FIRST = ("encoder_hidden_states", "hidden_states")


def _list(path: str, returns: tuple[str, ...] = _BARE, tokens: Tokens = "all") -> BlockGroup:
    return BlockGroup(path, "hidden_states", returns, tokens=tokens)


# Classes whose blocks diffusers does not register, or where its metadata does not say all.
STACKS: dict[str, tuple[BlockGroup, ...]] = {
    # Chroma's single blocks run on text and image in one tensor, text first.
    "ChromaTransformer2DModel": (
        _list("transformer_blocks", _TEXT_FIRST),
        _list("single_transformer_blocks", tokens="last"),
    ),
    "CosmosTransformer3DModel": (_list("transformer_blocks"),),
    "ErnieImageTransformer2DModel": (BlockGroup("layers", "x", ("x",)),),
    # The image's own blocks, then blocks on image, reference images and text; the text's own blocks
    # and those of reference images run at every step.
    "Flux3Transformer2DModel": (
        _list("mode_blocks.image"),
        _list("single_transformer_blocks", _TEXT_FIRST, tokens="first"),
    ),
    "Ideogram4Transformer2DModel": (_list("layers"),),
    "Kandinsky5Transformer3DModel": (
        BlockGroup("visual_transformer_blocks", "visual_embed", ("visual_embed",)),
    ),
    "Lumina2Transformer2DModel": (_list("layers"),),  # its refiners run at every step
    "PRXTransformer2DModel": (_list("blocks"),),
    "QwenImage21Transformer2DModel": (_list("transformer_blocks"),),
    "SanaTransformer2DModel": (_list("transformer_blocks"),),
    "SanaVideoTransformer3DModel": (_list("transformer_blocks"),),
    "SkyReelsV2Transformer3DModel": (_list("blocks"),),
    "StableAudioDiTModel": (_list("transformer_blocks"),),
    # Image and caption tokens of all samples, padded to one tensor; its refiners run at every step.
    "ZImageTransformer2DModel": (BlockGroup("layers", "x", ("x",)),),
}

# What diffusers calls latent and time in a transformer's `forward`.
_CALLED = (("hidden_states", "timestep"), ("hidden_states", "timesteps"), ("x", "t"))

# Classes whose pipelines call them with a time between 0 and 1.
UNIT_TIME = (
    "AceStepTransformer1DModel",
    "BriaFibo2Transformer2DModel",
    "ChromaTransformer2DModel",
    "CosmosTransformer3DModel",  # Cosmos 1 with log(sigma) / 4, which its scheduler tells
    "Flux3Transformer2DModel",
    "Ideogram4Transformer2DModel",
    "LongCatAudioDiTTransformer",
    "Lumina2Transformer2DModel",
    "LuminaNextDiT2DModel",
    "NucleusMoEImageTransformer2DModel",
    "OmniGenTransformer2DModel",
    "PRXTransformer2DModel",
    "QwenImage21Transformer2DModel",
    "StableAudioDiTModel",  # atan(sigma) 2 / pi, near sigma / (1 + sigma)
    "ZImageTransformer2DModel",
)

# Classes that are called with 1 - sigma, or with the timesteps of a scheduler with inverted sigmas.
TIME_RUNS_UP = (
    "Ideogram4Transformer2DModel",
    "LongCatAudioDiTTransformer",
    "Lumina2Transformer2DModel",
    "LuminaNextDiT2DModel",
    "MochiTransformer3DModel",
    "OmniGenTransformer2DModel",
    "ZImageTransformer2DModel",
)

# Registered blocks, but what runs is not one chain of them on one stream.
OUTPUT_ONLY = (
    "LatteTransformer3DModel",  # spatial and temporal blocks take turns, tokens are regrouped
    "MotifVideoTransformer3DModel",  # its decoder blocks start from the stream's beginning
)


def generic_spec(model: torch.nn.Module) -> ModelSpec | None:
    """The table of a model of diffusers, or None if it is not called with a latent and a time."""
    cls = type(model)
    parameters = inspect.signature(cls.forward).parameters
    called = [names for names in _CALLED if set(names) <= set(parameters)]
    if not called:
        return None
    sample, timestep = called[0]
    names = [base.__name__ for base in cls.__mro__]
    groups: tuple[BlockGroup, ...] = ()
    if known := [STACKS[name] for name in names if name in STACKS]:
        groups = known[0]
    elif not any(name in OUTPUT_ONLY for name in names):
        groups = _registered_groups(model)
    return ModelSpec(
        groups=groups,
        class_name=cls.__name__,
        sample=sample,
        timestep=timestep,
        timestep_scale=1.0 if any(name in UNIT_TIME for name in names) else 1000.0,
        time_runs_up=any(name in TIME_RUNS_UP for name in names),
        must_be_none=tuple(
            name for name in parameters if "controlnet" in name and not name.endswith("_repeat")
        ),
    )


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
