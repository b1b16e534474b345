"""The three calls a user makes, and the scope for those who serve many requests on one model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

import foca_kernels
from foca_dit.adapters.layout import uncompiled
from foca_dit.adapters.models import find_spec, register_adapter
from foca_dit.adapters.spec import ModelSpec
from foca_dit.clock import NoiseLevels
from foca_dit.config import FoCaCacheConfig, checked
from foca_dit.schemes.base import fault
from foca_dit.state import CacheState

if TYPE_CHECKING:
    from foca_dit.adapters.hooks import ModelHook

__all__ = [
    "apply_foca_cache",
    "cache_scope",
    "foca_cache",
    "foca_cache_stats",
    "register_adapter",
    "remove_foca_cache",
]


def apply_foca_cache(
    model_or_pipeline: Any, config: FoCaCacheConfig | None = None
) -> torch.nn.Module:
    """Makes a diffusers transformer cache and forecast its features.

    Nothing else changes: the pipeline is called as before, and every generation starts afresh.

    Args:
        model_or_pipeline: a supported transformer, or a pipeline that has one as `.transformer`.
            Of a pipeline the cache also reads the scheduler, and follows it when it is replaced.
            A transformer alone is taken for a flow-matching model: its timestep is the noise level.
        config: how to cache; None is the preset "default".

    Returns:
        The transformer that now caches.

    Raises:
        TypeError: a model that is not supported.
        ValueError: the model already has a cache, ours or one of diffusers', or cannot cache at
            this granularity, or is not the one that the plan or the scheme was calibrated for.

    Example:
        >>> apply_foca_cache(pipe, FoCaCacheConfig(cache_interval=5))
        >>> image = pipe(prompt).images[0]
    """
    from foca_dit.adapters import hooks, install, registry

    config = checked(config, "apply_foca_cache")
    model, scheduler = transformer_of("foca_dit", model_or_pipeline)
    spec = find_spec(model)
    if hooks.find_hook(model) is not None:
        raise ValueError(
            f"foca_dit: {type(model).__name__} already has a cache: call remove_foca_cache(model) "
            "before applying another"
        )
    settings = config.resolve()
    if settings.scheme.origin is not None:
        settings.scheme.origin.check(model, settings.granularity, scheduler)
    granularity = granularity_of("foca_dit", model, spec, config)
    for module in model.modules():
        if (other := registry.replaced_by(module)) is not None:
            raise ValueError(
                f"foca_dit: {type(model).__name__} already uses {other} of diffusers, which "
                "replaces what its blocks compute: take that out first (model.disable_cache())"
            )
    state = CacheState(config, restartable=True)
    levels = NoiseLevels.of(scheduler, spec.timestep_scale, spec.time_runs_up)
    pipeline = None if scheduler is None else model_or_pipeline
    for name in _SECOND_TRANSFORMERS:
        second = getattr(model_or_pipeline, name, None)
        if isinstance(second, torch.nn.Module) and hooks.find_hook(uncompiled(second)) is None:
            warnings.warn(
                f"foca_dit: the cache serves pipeline.transformer; pipeline.{name} computes every "
                f"step: apply_foca_cache(pipeline.{name}, config) serves it, too",
                stacklevel=2,
            )
    install.install(model, spec, granularity, state, levels, pipeline=pipeline)
    return model


# Wan 2.2 denoises its last steps with a second transformer, Ideogram 4 computes guidance with one.
_SECOND_TRANSFORMERS = ("transformer_2", "unconditional_transformer")


def remove_foca_cache(model_or_pipeline: Any) -> None:
    """Takes the cache out again and frees its memory; the model is then as it was before."""
    from foca_dit.adapters import install

    model, _ = _cached(model_or_pipeline)
    install.uninstall(model)


@contextmanager
def foca_cache(
    model_or_pipeline: Any, config: FoCaCacheConfig | None = None
) -> Iterator[torch.nn.Module]:
    """`apply_foca_cache` for what runs inside it; the cache is taken out however that ends.

    Args, errors: as `apply_foca_cache`.

    Example:
        >>> with foca_cache(pipe, FoCaCacheConfig(cache_interval=5)):
        ...     image = pipe(prompt).images[0]
    """
    model = apply_foca_cache(model_or_pipeline, config)
    try:
        yield model
    finally:
        remove_foca_cache(model)


def foca_cache_stats(model_or_pipeline: Any, state: CacheState | None = None) -> dict[str, Any]:
    """What a cache has done and holds: counts, bytes, granularity, scheme, backend.

    Args:
        model_or_pipeline: a model with a cache applied.
        state: a state of your own, used with `cache_scope`; None: the model's.

    Returns:
        The fields of `CacheStats`, and `nbytes` (held now), `features`, `granularity`, `scheme`
        and `backends` (`foca_kernels.backend_report()`).
    """
    _, hook = _cached(model_or_pipeline)
    _check_state("foca_cache_stats", state)
    states = hook.states if state is None else (state,)
    counts = hook.counts() if state is None else state.stats
    state = states[0]
    return {
        **counts.as_dict(),
        "nbytes": sum(each.nbytes for each in states),
        "features": hook.features,
        "granularity": hook.granularity,
        "scheme": repr(state.settings.scheme),
        "backends": foca_kernels.backend_report(),
    }


@contextmanager
def cache_scope(
    model_or_pipeline: Any, state: CacheState | None, branch: str = "default"
) -> Iterator[None]:
    """Runs the calls inside it, in this task or thread, on a state of the caller's.

    A task of asyncio has scopes of its own, and `asyncio.to_thread` takes them along. An executor
    or an open generator does not: put the scope around the call itself.

    Args:
        model_or_pipeline: a model with a cache applied.
        state: the state of one request; None: these calls are computed in full. No state sees
            them: use None for whole generations, not for single steps of one.
        branch: the guidance branch that the calls belong to. A pipeline that names its branches
            itself (diffusers' `cache_context`) may run as a whole inside one scope.

    Example:
        >>> state = CacheState(config)
        >>> with cache_scope(model, state, branch="cond"):
        ...     noise = model(x, timestep=t, class_labels=y).sample
    """
    model, hook = _cached(model_or_pipeline)
    _check_state("cache_scope", state)
    if state is not None:
        state.attach(model, hook.granularity, hook.features, hook.state.levels)
    with hook.scoped(state, branch):
        yield


def transformer_of(owner: str, model_or_pipeline: Any) -> tuple[torch.nn.Module, Any]:
    """The transformer, and the scheduler if a pipeline was given to `owner`."""
    if isinstance(model_or_pipeline, torch.nn.Module):
        return uncompiled(model_or_pipeline), None
    transformer = getattr(model_or_pipeline, "transformer", None)
    if isinstance(transformer, torch.nn.Module):
        return uncompiled(transformer), getattr(model_or_pipeline, "scheduler", None)
    expected = "a transformer or a pipeline that has one as .transformer"
    got = type(model_or_pipeline).__name__
    raise TypeError(fault(owner, "model_or_pipeline", expected, got))


def granularity_of(
    owner: str, model: torch.nn.Module, spec: ModelSpec, config: FoCaCacheConfig
) -> str:
    """The granularity that a model is cached at under a configuration given to `owner`."""
    wanted = config.resolve().granularity
    if wanted in spec.granularities:
        return wanted
    if config.granularity is None:
        return spec.granularities[0]  # a preset's wish, not the user's
    expected = f"a granularity out of {spec.granularities} for {type(model).__name__}"
    raise ValueError(fault(owner, "config", expected, repr(wanted)))


def _cached(model_or_pipeline: Any) -> tuple[torch.nn.Module, ModelHook]:
    """The transformer and its cache."""
    from foca_dit.adapters import hooks

    model, _ = transformer_of("foca_dit", model_or_pipeline)
    hook = hooks.find_hook(model)
    if hook is None:
        raise ValueError(
            f"foca_dit: {type(model).__name__} has no cache: call apply_foca_cache(model, config) "
            "first"
        )
    return model, hook


def _check_state(name: str, state: Any) -> None:
    if not (state is None or isinstance(state, CacheState)):
        raise TypeError(fault(name, "state", "a CacheState or None", type(state).__name__))
