"""What is asked of the arguments of particular models: conditionings, segments of tokens, and
whether a call keeps keys and values.

The functions that tables (`foca_dit.adapters.models`) name where a block's argument alone will not
do; `LinearGates` says what each of them is given and returns.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from foca_dit.adapters.gates import is_unhooked
from foca_dit.adapters.spec import Arguments, Segment


def dit_common(block: torch.nn.Module, arguments: Arguments) -> Arguments:
    """What all DiT blocks embed, each by itself: timesteps, as sinusoids without weights.

    There is one for the whole batch. And each class once: with guidance half of the labels are the
    null class.
    """
    labels, dtype = arguments["class_labels"], arguments["hidden_states"].dtype
    timesteps = arguments.get("timesteps", arguments["timestep"][:1])
    common = {"timesteps": timesteps, "hidden_dtype": dtype}
    if (embedding := _dit_embedding(block)) is not None:
        common["sinusoids"] = embedding.time_proj(timesteps).to(dtype)
        if len(labels) > 1 and _may_look_at(labels) and not block.training:
            classes, row = torch.unique(labels, return_inverse=True)
            first = len(classes) * torch.arange(len(timesteps))
            common |= {"class_labels": classes, "rows": (first[:, None] + row).flatten()}
    return common


def _may_look_at(values: torch.Tensor) -> bool:
    """Whether reading values holds nothing up: on the CPU, and not while they are traced."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def dit_conditioning(block: torch.nn.Module, arguments: Arguments) -> torch.Tensor:
    timesteps, labels = arguments["timesteps"], arguments["class_labels"]
    embedding = _dit_embedding(block)
    if embedding is None or "sinusoids" not in arguments:
        each, every = timesteps.repeat_interleave(len(labels)), labels.repeat(len(timesteps))
        whole = block.get_submodule("norm1.emb")
        return F.silu(whole(each, every, hidden_dtype=arguments["hidden_dtype"]))
    time = embedding.timestep_embedder(arguments["sinusoids"])
    return F.silu((time.unsqueeze(1) + embedding.class_embedder(labels)).flatten(0, 1))


def _dit_embedding(block: torch.nn.Module) -> Any | None:
    """A block's embedding if it is diffusers' own, unhooked: its parts can be run one by one."""
    embedding = block.get_submodule("norm1.emb")
    own = type(embedding).__name__ == "CombinedTimestepLabelEmbeddings"
    return embedding if own and is_unhooked(embedding) else None


def hunyuan_conditioning(block: torch.nn.Module, arguments: Arguments) -> torch.Tensor:
    """[B, C], or [2 B, C]: the second half is for the tokens of a given first frame."""
    parts = [arguments["temb"]]
    if arguments.get("token_replace_emb") is not None:
        parts.append(arguments["token_replace_emb"])
    return F.silu(torch.cat(parts))


def hunyuan_segments(call: Arguments, arguments: Arguments, shape: torch.Size) -> Any:
    if arguments.get("token_replace_emb") is None:
        return None
    batch = shape[0]
    return _split(
        [arguments["num_tokens"]] * batch, shape, first=range(batch, 2 * batch), rest=range(batch)
    )


def qwen_segments(call: Arguments, arguments: Arguments, shape: torch.Size) -> Any:
    """With `zero_cond_t` the first image of a sample is denoised, the others are given."""
    if arguments.get("modulate_index") is None:
        return None
    counts = [math.prod(images[0]) for images in call["img_shapes"]]
    batch = shape[0]
    return _split(counts, shape, first=range(batch), rest=range(batch, 2 * batch))


def _split(counts: list[int], shape: torch.Size, first: range, rest: range) -> list[Segment]:
    """Two segments a sample: its first tokens take a row of `first`, the others one of `rest`."""
    segments = []
    for sample, count in enumerate(counts):
        segments.append((sample, 0, count, first[sample]))
        if count < shape[1]:
            segments.append((sample, count, shape[1], rest[sample]))
    return segments


def plain_embedding(block: torch.nn.Module, arguments: Arguments) -> torch.Tensor:
    """The timestep's embedding as it is: these modulations have no SiLU before them."""
    embedding: torch.Tensor = arguments["temb"]
    return embedding


def glm_writes(arguments: Arguments) -> bool:
    """Whether a call keeps keys and values of a given image, before the loop begins."""
    caches = arguments.get("kv_caches")
    return caches is not None and any(cache.mode == "write" for cache in caches.caches)


def extracts(arguments: Arguments) -> bool:
    """The same where an argument says so: "extract", "capture_pre_rope", .."""
    mode = arguments.get("kv_cache_mode")
    return isinstance(mode, str) and ("extract" in mode or "capture" in mode)
