"""What a cache would cost and save in a model, found out on the meta device: nothing is computed.

A copy of the model's structure, its parameters without storage, goes through one full and one
skipped step with the real hooks; shapes alone say what is held and what is multiplied.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from foca_dit.adapters.block_hooks import Mode
from foca_dit.adapters.hooks import ModelHook, find_hook
from foca_dit.adapters.install import install, uninstall
from foca_dit.adapters.spec import ModelSpec
from foca_dit.clock import NoiseLevels
from foca_dit.config import FoCaCacheConfig
from foca_dit.history import FeatureHistories
from foca_dit.plan import Plan
from foca_dit.state import CacheState
from foca_dit.tuned import Tabulated


@dataclass(frozen=True)
class Account:
    """One granularity of one model, for one call.

    Attributes:
        granularity: what is cached.
        features: number of histories.
        nbytes: what they hold, all tensors of all histories.
        full_flops: floating-point operations of a full step, two to a multiply-add; matrix
            products, convolutions and attention only, as everybody counts.
        skipped_flops: the same of a skipped step.
    """

    granularity: str
    features: int
    nbytes: int
    full_flops: int
    skipped_flops: int


def on_meta(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model whose parameters and buffers have shapes and dtypes but no storage."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = torch.nn.Parameter(empty, requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo).eval()


def account(
    model: torch.nn.Module,
    spec: ModelSpec,
    granularity: str,
    inputs: Mapping[str, Any],
    config: FoCaCacheConfig,
) -> Account:
    """Counts one granularity.

    Args:
        model: a model on the meta device without a cache; it is left as it was.
        spec: its table.
        granularity: one of the spec's.
        inputs: the arguments of one call of the model; tensors are taken for their shapes.
        config: scheme and storage of the histories.

    Raises:
        ValueError: the call fails on the meta device.
    """
    state = CacheState(config)
    scheme = _of_two_steps(state.settings.scheme.history_size)
    state.settings = replace(state.settings, scheme=scheme)
    install(model, spec, granularity, state, NoiseLevels())
    try:
        hook = find_hook(model)
        assert isinstance(hook, ModelHook)
        histories = FeatureHistories(state.settings, hook.features, state.stats)
        arguments = {name: _on_meta(value) for name, value in inputs.items()}
        flops = []
        modes: tuple[Mode, ...] = ("full", "skip")
        for step, mode in enumerate(modes):
            histories.begin(step, [0.0, 1.0])
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                hook.perform(histories, mode, state, arguments)
            flops.append(counter.get_total_flops())
        return Account(granularity, hook.features, histories.nbytes, *flops)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"plan_foca_cache: {type(model).__name__} cannot be planned with these inputs: either "
            "they do not fit together, or the model reads values of its inputs, which the meta "
            f"device does not have ({str(error).splitlines()[0]})"
        ) from error
    finally:
        uninstall(model)


def _of_two_steps(size: int) -> Tabulated:
    """A scheme that keeps `size` tensors, for one full and one skipped step.

    All schemes of a size count alike, but those with the tables of a tuned plan refuse other steps
    than the plan's.
    """
    start = np.zeros((size, size + 1))
    start[:, -1] = 1.0
    described = {"name": Tabulated.name, "parameters": {}}
    return Tabulated(Plan(described, size, (0.0, 1.0), (0,), (start, np.ones(size))))


def _on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, Mapping):
        return {key: _on_meta(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_meta(item) for item in value)
    return value
