"""The arguments of a call of a model: by name, the timestep of the batch, what is asked for."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.utils._pytree import tree_any, tree_leaves

# What the arguments are called that carry a prompt's embeddings or a class. Others may well change
# from step to step of one generation.
_CONDITIONS = (
    "encoder_hidden_states", "pooled_", "class_labels", "image_embeds", "text_bth", "cap_feats",
)  # fmt: skip


def signature_of(kind: type, argument: str) -> inspect.Signature:
    """Of `forward`; a subclass that passes on whatever it is given has the one of its base."""
    forwards = [vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base)]
    signatures = [inspect.signature(forward) for forward in forwards]
    return next((s for s in signatures if argument in s.parameters), signatures[0])


def named(
    signature: inspect.Signature, module: torch.nn.Module, args: Any, kwargs: Any
) -> dict[str, Any]:
    """The arguments of a call of the module, as one would name them all."""
    bound = signature.bind_partial(module, *args, **kwargs).arguments
    itself, *_ = signature.parameters
    given = {name: value for name, value in bound.items() if name != itself}
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given.update(given.pop(name, {}))
    return given


def conditions(arguments: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that say what is to be drawn."""
    named = (v for name, v in arguments.items() if any(word in name for word in _CONDITIONS))
    return [leaf for value in named for leaf in tree_leaves(value) if type(leaf) is torch.Tensor]


def requires_grad(arguments: dict[str, Any]) -> bool:
    """Whether a tensor among the arguments does, inside lists and dicts, too."""
    given = list(arguments.values())
    return tree_any(lambda value: isinstance(value, torch.Tensor) and value.requires_grad, given)


def one_timestep(timestep: Any) -> float | None:
    """The timestep of the whole batch; None if none is given, or samples differ (one host read)."""
    if not isinstance(timestep, torch.Tensor):
        return None if timestep is None else float(timestep)
    timestep = _of_samples(timestep)
    # A timestep expanded to the batch says so by its stride: no other sample's has to be read.
    is_expanded = timestep.dim() > 0 and timestep.stride(0) == 0
    first, *others = (timestep[:1] if is_expanded else timestep.reshape(-1)).tolist()
    return float(first) if all(other == first for other in others) else None


def _of_samples(timestep: torch.Tensor) -> torch.Tensor:
    """Timesteps per token as timesteps per sample: tokens of given images stand at lower ones."""
    return timestep.flatten(1).amax(1) if timestep.dim() > 1 else timestep
