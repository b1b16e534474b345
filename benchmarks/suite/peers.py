"""The installed caches of diffusers and cache-dit on a workload, as their authors ship them."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from foca_dit.evaluation.installed import cache_dit_applied, taylorseer_steps

from .models import Workload

# diffusers' own patterns take attentions only; these take what the paper caches. In FLUX's and
# HunyuanVideo's single blocks the last projection is the feature, and what feeds it is left out.
CACHED = [
    r"transformer_blocks\.\d+\.(attn|attn1|ff|ff_context)",
    r"single_transformer_blocks\.\d+\.proj_out",
]
INACTIVE = [r"single_transformer_blocks\.\d+\.(attn|proj_mlp)"]

CALIBRATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "cache-dit TaylorSeer-1": ("TaylorSeerCalibratorConfig", {"taylorseer_order": 1}),
    "cache-dit FoCa": ("FoCaCalibratorConfig", {}),
}


def has_cache_dit() -> bool:
    return importlib.util.find_spec("cache_dit") is not None


def nearest_taylorseer(count: int, warmup: int, steps: int) -> tuple[int, int]:
    """(interval, full steps) of diffusers' TaylorSeer nearest to a number of full steps.

    Its first full step after the warm-up comes a step later than elsewhere, so that it has not
    always an interval with exactly as many.
    """
    counts = {n: len(taylorseer_steps(n, warmup, steps)) for n in range(2, steps)}
    interval = min(counts, key=lambda n: (abs(counts[n] - count), n))
    return interval, counts[interval]


@contextmanager
def taylorseer(workload: Workload, interval: int, all_modules: bool) -> Iterator[Workload]:
    """diffusers' TaylorSeer of order 1; on its own patterns, or on all cached modules."""
    from diffusers import TaylorSeerCacheConfig
    from diffusers.models.cache_utils import CacheMixin

    model: Any = workload.model
    kind = type(model)
    if not isinstance(model, CacheMixin):  # DiT, alone among diffusers' newer transformers
        model.__class__ = type(kind.__name__, (kind, CacheMixin), {})
    has_single = hasattr(model, "single_transformer_blocks")
    model.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=workload.warmup,
            cache_identifiers=CACHED if all_modules else None,
            skip_predict_identifiers=INACTIVE if all_modules and has_single else None,
        )
    )
    try:
        yield replace(workload, context=lambda: model.cache_context("cond"))
    finally:
        model.disable_cache()
        model.__class__ = kind


@contextmanager
def cache_dit_calibrated(workload: Workload, mask: list[int], name: str) -> Iterator[Workload]:
    """cache-dit's DBCache F1B0, with a mask of full steps and one of its calibrators.

    It always computes the first block.
    """
    import cache_dit

    config_name, parameters = CALIBRATORS[name]
    calibrator = getattr(cache_dit, config_name)(**parameters)
    if workload.name.startswith("dit"):
        with cache_dit_applied(workload.model, calibrator, mask) as own:
            yield replace(workload, model=own)
        return
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it reports every generation
    try:
        cache_dit.enable_cache(
            workload.model,
            cache_config=cache_dit.DBCacheConfig(
                Fn_compute_blocks=1,
                Bn_compute_blocks=0,
                residual_diff_threshold=1e9,
                max_warmup_steps=workload.warmup,
                num_inference_steps=len(mask),
                steps_computation_mask=mask,
                steps_computation_policy="static",
            ),
            calibrator_config=calibrator,
        )
        yield workload
        cache_dit.disable_cache(workload.model)
    finally:
        logging.disable(before)
