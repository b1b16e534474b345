"""Feature caching for Diffusion Transformers: forecast what a step would have computed.

`apply_foca_cache(pipe, FoCaCacheConfig())` is all a diffusers user needs. Below it stand, each
usable alone: `schemes` (the mathematics), schedules (when to compute), `CacheState` (what is kept).
The tensor work is done by the fused operators of `foca_kernels`.
"""

from foca_dit import schemes
from foca_dit.api import (
    apply_foca_cache,
    cache_scope,
    foca_cache,
    foca_cache_stats,
    register_adapter,
    remove_foca_cache,
)
from foca_dit.config import FoCaCacheConfig
from foca_dit.estimate import CacheEstimate, plan_foca_cache
from foca_dit.schedules import Adaptive, FullSteps, Interval, Schedule, StepMask
from foca_dit.state import CacheState

__all__ = [
    "Adaptive",
    "CacheEstimate",
    "CacheState",
    "FoCaCacheConfig",
    "FullSteps",
    "Interval",
    "Schedule",
    "StepMask",
    "apply_foca_cache",
    "cache_scope",
    "foca_cache",
    "foca_cache_stats",
    "plan_foca_cache",
    "register_adapter",
    "remove_foca_cache",
    "schemes",
]
