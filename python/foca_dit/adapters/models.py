"""The table of supported transformer classes. Adding a model is adding an entry here.

Text streams appear only in `returns`: they are rebuilt at every step and dropped after the last
block, so a skipped step needs no forecast of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from foca_dit.adapters import conditioning
from foca_dit.adapters.generic import generic_spec
from foca_dit.adapters.registry import is_of_diffusers
from foca_dit.adapters.spec import (
    BlockGroup,
    Feature,
    LinearGates,
    ModelSpec,
    SharedGates,
)

_JOINT = ("encoder_hidden_states", "hidden_states")
_IP_ADAPTER = tuple(
    f"{name}.{key}"
    for name in ("joint_attention_kwargs", "attention_kwargs")
    for key in ("ip_adapter_image_embeds", "ip_hidden_states")
)
# Rows of AdaLayerNormZero: shift, scale, gate of the attention, then of the feed-forward.
_ZERO = LinearGates("temb")
_IMAGE_FEATURES = (
    Feature("attn", 2, "norm1.linear", item=0),
    Feature("ff", 5, "norm1.linear"),
)
_TABLE_FEATURES = (Feature("attn1", 2), Feature("attn2"), Feature("ff", 5))
_HUNYUAN = LinearGates(conditioning.hunyuan_conditioning, segments=conditioning.hunyuan_segments)

_ENTRIES = (
    ModelSpec(
        class_name="DiTTransformer2DModel",
        groups=(
            BlockGroup(
                "transformer_blocks",
                features=(Feature("attn1", 2, "norm1.linear"), Feature("ff", 5, "norm1.linear")),
                gates=LinearGates(
                    conditioning.dit_conditioning,
                    per_block=True,
                    common=conditioning.dit_common,
                    ahead=("class_labels",),
                ),
            ),
        ),
    ),
    ModelSpec(  # also Kontext, Fill, img2img: the same class
        class_name="FluxTransformer2DModel",
        groups=(
            BlockGroup("transformer_blocks", returns=_JOINT, features=_IMAGE_FEATURES, gates=_ZERO),
            BlockGroup(
                "single_transformer_blocks",
                returns=_JOINT,
                features=(Feature("proj_out", 2, "norm.linear", tokens="last"),),
                gates=_ZERO,
            ),
        ),
        timestep_scale=1.0,
        must_be_none=("controlnet_block_samples", "controlnet_single_block_samples", *_IP_ADAPTER),
    ),
    ModelSpec(
        class_name="HunyuanVideoTransformer3DModel",
        groups=(
            BlockGroup(
                "transformer_blocks", returns=_JOINT[::-1], features=_IMAGE_FEATURES, gates=_HUNYUAN
            ),
            BlockGroup(
                "single_transformer_blocks",
                returns=_JOINT[::-1],
                features=(Feature("proj_out", 2, "norm.linear", tokens="first"),),
                gates=_HUNYUAN,
            ),
        ),
    ),
    ModelSpec(
        class_name="HunyuanVideo15Transformer3DModel",
        groups=(
            BlockGroup(
                "transformer_blocks", returns=_JOINT[::-1], features=_IMAGE_FEATURES, gates=_ZERO
            ),
        ),
    ),
    ModelSpec(
        class_name="SD3Transformer2DModel",
        groups=(
            BlockGroup(
                "transformer_blocks",
                returns=_JOINT,
                # The first blocks of SD3.5 medium have a second attention, of the image alone.
                features=(*_IMAGE_FEATURES, Feature("attn2", 8, "norm1.linear", optional=True)),
                gates=_ZERO,
            ),
        ),
        must_be_none=("block_controlnet_hidden_states", "skip_layers", *_IP_ADAPTER),
    ),
    ModelSpec(
        class_name="QwenImageTransformer2DModel",
        groups=(
            BlockGroup(
                "transformer_blocks",
                returns=_JOINT,
                features=(
                    Feature("attn", 2, "img_mod.1", item=0),
                    Feature("img_mlp", 5, "img_mod.1"),
                ),
                gates=LinearGates("temb", segments=conditioning.qwen_segments),
            ),
        ),
        timestep_scale=1.0,
        must_be_none=("controlnet_block_samples",),
    ),
    ModelSpec(
        class_name="Flux2Transformer2DModel",
        groups=(
            BlockGroup(
                "transformer_blocks",
                returns=_JOINT,
                features=(Feature("attn", 2, item=0), Feature("ff", 5)),
                gates=SharedGates(module="double_stream_modulation_img"),
            ),
            BlockGroup(
                "single_transformer_blocks",
                features=(Feature("attn", 2, tokens="last"),),
                gates=SharedGates(module="single_stream_modulation"),
                tokens="last",  # the model prepends the text to the stream
            ),
        ),
        timestep_scale=1.0,
        # Tokens of reference images, modulated by a timestep of their own, and a model that
        # returns its keys and values.
        must_be_none=("kv_cache_mode",),
    ),
    ModelSpec(
        class_name="WanTransformer3DModel",
        groups=(
            BlockGroup(
                "blocks",
                features=(Feature("attn1", 2), Feature("attn2"), Feature("ffn", 5)),
                gates=SharedGates(argument="temb", table="scale_shift_table"),
            ),
        ),
    ),
    ModelSpec(
        class_name="LTXVideoTransformer3DModel",
        groups=(
            BlockGroup(
                "transformer_blocks",
                features=_TABLE_FEATURES,
                gates=SharedGates(argument="temb", table="scale_shift_table"),
            ),
        ),
    ),
    ModelSpec(
        class_name="PixArtTransformer2DModel",
        groups=(
            BlockGroup(
                "transformer_blocks",
                features=_TABLE_FEATURES,
                gates=SharedGates(argument="timestep", table="scale_shift_table"),
            ),
        ),
    ),
    ModelSpec(
        class_name="Krea2Transformer2DModel",
        groups=(
            BlockGroup(  # text and image in one stream, with the same gates
                "transformer_blocks",
                features=(Feature("attn", 2), Feature("ff", 5)),
                gates=SharedGates(argument="temb", table="scale_shift_table"),
            ),
        ),
        timestep_scale=1.0,
    ),
    ModelSpec(
        class_name="CogVideoXTransformer3DModel",
        groups=(
            BlockGroup(
                "transformer_blocks",
                returns=_JOINT[::-1],
                # Rows of CogVideoXLayerNormZero: shift, scale, gate of the video, then of the text.
                features=(
                    Feature("attn1", 2, "norm1.linear", item=0),
                    Feature("ff", 2, "norm2.linear", tokens="last"),
                ),
                gates=LinearGates("temb"),
            ),
        ),
    ),
    ModelSpec(
        class_name="CogView4Transformer2DModel",
        groups=(
            BlockGroup(
                "transformer_blocks",
                returns=_JOINT[::-1],
                # Rows: shifts, scales, gates of the attention, then of the feed-forward, each for
                # image and text. The feed-forward runs on the image, then on the text: a step's
                # first call is the feature.
                features=(
                    Feature("attn1", 4, "norm1.linear", item=0),
                    Feature("ff", 10, "norm1.linear"),
                ),
                gates=LinearGates(conditioning.plain_embedding),
            ),
        ),
    ),
    ModelSpec(
        class_name="CogView3PlusTransformer2DModel",
        groups=(
            BlockGroup(
                "transformer_blocks",
                returns=_JOINT[::-1],
                features=(
                    Feature("attn1", 2, "norm1.linear", item=0),
                    Feature("ff", 5, "norm1.linear", tokens="last"),
                ),
                gates=LinearGates("emb"),
            ),
        ),
    ),
    ModelSpec(  # the attention only feeds the feed-forward, which alone adds to the stream
        class_name="AuraFlowTransformer2DModel",
        groups=(
            BlockGroup(
                "joint_transformer_blocks",
                returns=_JOINT,
                features=(Feature("ff", 5, "norm1.linear"),),
                gates=_ZERO,
            ),
            BlockGroup(
                "single_transformer_blocks",
                features=(Feature("ff", 5, "norm1.linear", tokens="last"),),
                gates=_ZERO,
                tokens="last",  # the model prepends the text to the stream
            ),
        ),
        timestep_scale=1.0,
    ),
)

# Classes that are built of the same blocks in the same order as another, and their timestep scale.
_ALIKE = {
    "BriaTransformer2DModel": ("FluxTransformer2DModel", 1000.0),
    "LongCatImageTransformer2DModel": ("FluxTransformer2DModel", 1.0),
    "OvisImageTransformer2DModel": ("FluxTransformer2DModel", 1.0),
    "HunyuanVideoFramepackTransformer3DModel": ("HunyuanVideoTransformer3DModel", 1000.0),
    "HunyuanImageTransformer2DModel": ("HunyuanVideoTransformer3DModel", 1000.0),
    "AllegroTransformer3DModel": ("LTXVideoTransformer3DModel", 1000.0),
    "GlmImageTransformer2DModel": ("CogView4Transformer2DModel", 1000.0),
    "ChronoEditTransformer3DModel": ("WanTransformer3DModel", 1000.0),
}

# All of them embed the sample into a new tensor, which the blocks replace.
SPECS: dict[str, ModelSpec] = {spec.class_name: replace(spec, new_stream=True) for spec in _ENTRIES}
for _name, (_like, _scale) in _ALIKE.items():
    SPECS[_name] = replace(SPECS[_like], class_name=_name, timestep_scale=_scale)
# Of given images, at timestep 0.
SPECS["GlmImageTransformer2DModel"] = replace(
    SPECS["GlmImageTransformer2DModel"], writes=conditioning.glm_writes
)

_REGISTERED: dict[type, ModelSpec] = {}


def register_adapter(cls: type[torch.nn.Module], spec: ModelSpec) -> None:
    """Tells where a transformer class of your own keeps its blocks, features and gates.

    Models of this class, or of one derived from it, are then served by `apply_foca_cache`. Neither
    they nor their hooks need diffusers.

    Args:
        cls: the class; a second call replaces its table.
        spec: its table; the docstrings of `foca_dit.adapters.spec` say what goes where.

    Raises:
        TypeError: something else than a class of modules and a table.
    """
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise TypeError(
            f"register_adapter: argument 'cls': expected a subclass of torch.nn.Module, got {cls!r}"
        )
    if not isinstance(spec, ModelSpec):
        raise TypeError(f"register_adapter: argument 'spec': expected a ModelSpec, got {spec!r}")
    _REGISTERED[cls] = spec


def find_spec(model: torch.nn.Module) -> ModelSpec:
    """The table entry of a model's class: registered, ours, or read off diffusers' metadata.

    Raises:
        TypeError: a class that is not supported; the message says what to do.
    """
    for base in type(model).__mro__:
        if base in _REGISTERED:
            return _REGISTERED[base]
        if base.__name__ in SPECS and base.__module__.partition(".")[0] == "diffusers":
            return SPECS[base.__name__]
    if is_of_diffusers(model) and (spec := generic_spec(model)) is not None:
        return spec
    raise TypeError(
        "foca_dit: argument 'model_or_pipeline': expected a pipeline, a transformer of diffusers "
        f"or a class given to register_adapter, got {type(model).__name__}"
    )
