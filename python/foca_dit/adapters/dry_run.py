"""What a cache would cost and save in a model, found out on the meta device: nothing is computed.

A copy of the model's structure, its parameters without storage, goes through full, skipped and
mixed steps with the real hooks; shapes alone say what is held and what is multiplied.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from foca_dit.adapters.block_hooks import Mode
from foca_dit.adapters.hooks import ModelHook, find_hook
from foca_dit.adapters.install import install, uninstall
from foca_dit.adapters.spec import ModelSpec, as_batch
from foca_dit.clock import NoiseLevels
from foca_dit.config import FoCaCacheConfig
from foca_dit.history import FeatureHistories
from foca_dit.plan import Plan
from foca_dit.state import CacheState
from foca_dit.trajectory import FINGERPRINT_SIZE
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
        peak_nbytes: what a generation holds at its fullest on top of what it holds without a cache:
            the histories, sums over features in float32, copies of the stream, fingerprints.
        mixed_flops: of every step in which some features are computed and some forecast.
    """

    granularity: str
    features: int
    nbytes: int
    full_flops: int
    skipped_flops: int
    peak_nbytes: int
    mixed_flops: tuple[int, ...] = ()


class Allocated(TorchDispatchMode):
    """Counts the bytes of the storages that live, among those made inside it, on any device.

    What is made `uncounted` is left out.

    Attributes:
        now: the bytes that live.
        peak: the most that lived at one time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()
        self._off = False

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leaves out what is made inside."""
        self._off = True
        try:
            yield
        finally:
            self._off = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._off:
            return result
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or size == 0:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Chosen(FeatureHistories):
    """Histories of which the caller says what is due; they are folded at the first step only.

    They are not counted as allocated: that would find them half grown at the fullest moment.
    """

    due_features: frozenset[int] = frozenset()
    allocated = Allocated()

    def due(self, feature: int) -> bool:
        return feature in self.due_features

    def commit(self, feature: int, value: torch.Tensor) -> None:
        if self._step == 0:
            with self.allocated.uncounted():
                super().commit(feature, value)


def on_meta(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model whose parameters and buffers have shapes and dtypes but no storage."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = torch.nn.Parameter(empty, requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo).eval()


def accounts(
    model: torch.nn.Module,
    spec: ModelSpec,
    granularities: Sequence[str],
    inputs: Mapping[str, Any],
    config: FoCaCacheConfig,
    mixed: Sequence[frozenset[int]] = (),
) -> tuple[Account, ...]:
    """Counts one granularity after the other.

    Args:
        model: a model on the meta device without a cache; it is left as it was.
        spec: its table.
        granularities: out of the spec's.
        inputs: the arguments of one call of the model; tensors are taken for their shapes.
        config: scheme and storage of the histories.
        mixed: for every step in which some features are computed and some forecast, those computed.

    Raises:
        ValueError: the call fails on the meta device.
    """
    arguments = {name: _on_meta(value) for name, value in inputs.items()}
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter, Allocated() as uncached:
            model(**arguments)
        full = int(counter.get_total_flops())
        return tuple(
            _account(model, spec, name, arguments, config, mixed, full, uncached.peak)
            for name in granularities
        )
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"plan_foca_cache: {type(model).__name__} cannot be planned with these inputs: either "
            "they do not fit together, or the model reads values of its inputs, which the meta "
            f"device does not have ({str(error).splitlines()[0]})"
        ) from error
    finally:
        uninstall(model)


def _account(
    model: torch.nn.Module,
    spec: ModelSpec,
    granularity: str,
    arguments: dict[str, Any],
    config: FoCaCacheConfig,
    mixed: Sequence[frozenset[int]],
    full_flops: int,
    uncached_peak: int,
) -> Account:
    state = CacheState(config)
    scheme = _of_two_steps(state.settings.scheme.history_size)
    state.settings = replace(state.settings, scheme=scheme)
    install(model, spec, granularity, state, NoiseLevels())
    hook = find_hook(model)
    assert isinstance(hook, ModelHook)
    histories = _Chosen(state.settings, hook.features, state.stats)

    def run(step: int, mode: Mode, due: frozenset[int] = frozenset()) -> None:
        histories.begin(step, [0.0, 1.0])
        histories.due_features = due
        with torch.no_grad():
            hook.perform(histories, mode, state, arguments)

    def flops(mode: Mode, due: frozenset[int] = frozenset()) -> int:
        with FlopCounterMode(display=False) as counter:
            run(1, mode, due)
        return int(counter.get_total_flops())

    with Allocated() as histories.allocated:
        run(0, "full")
        skipped = flops("skip")
    by_pattern = {due: flops("modules", due) for due in set(mixed)}
    sample = as_batch(arguments.get(spec.sample))
    beside = max(histories.allocated.peak - uncached_peak, 0)
    watched = min(sample.numel(), FINGERPRINT_SIZE) if isinstance(sample, torch.Tensor) else 0
    uninstall(model)
    return Account(
        granularity,
        hook.features,
        histories.nbytes,
        full_flops,
        skipped,
        peak_nbytes=histories.nbytes + beside + 4 * watched,
        mixed_flops=tuple(by_pattern[due] for due in mixed),
    )


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
