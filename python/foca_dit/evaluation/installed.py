"""The caches of diffusers and cache-dit as they ship, through their public interfaces.

They run on copies of the model. diffusers' `DiTTransformer2DModel` lacks diffusers' own
`CacheMixin`, which all its newer transformers have: the copy is given it, and is otherwise as it
ships. What a cache computes is counted, not assumed; the bytes that it holds are not known.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from foca_dit.evaluation.online import MAG_RETENTION, front_threshold, mag_rule
from foca_dit.evaluation.rival import Rival, best_count, uniform
from foca_dit.evaluation.setting import Absent, Outcome, Setting

# diffusers --------------------------------------------------------------------------------------


class _InContext(torch.nn.Module):
    """Calls a model inside diffusers' cache context, as its pipelines do."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.timestep = 0.0

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> Any:
        self.timestep = float(arguments["timestep"].reshape(-1)[0])
        with self.model.cache_context("cond"):
            return self.model(hidden_states, **arguments)


def with_diffusers_cache(
    setting: Setting, configure: Callable[[_InContext], Any], **details: Any
) -> Outcome:
    """A generation under one of diffusers' cache configurations.

    Args:
        configure: from the model (whose `.timestep` is the current one) to a configuration.
    """
    from diffusers.models.cache_utils import CacheMixin

    model: Any = copy.deepcopy(setting.model)
    kind = type(model)
    model.__class__ = type(kind.__name__, (kind, CacheMixin), {})
    wrapped = _InContext(model)
    config = configure(wrapped)
    shown = {key: value for key, value in vars(config).items() if _plain(value)}
    model.enable_cache(config)
    return setting.draw(wrapped, begin=model._reset_stateful_cache, config=shown, **details)


def _plain(value: object) -> bool:
    return isinstance(value, (int, float, str, list, tuple)) and not isinstance(value, bool)


def first_block(setting: Setting, budget: int) -> Outcome:
    """FirstBlockCacheConfig."""
    from diffusers import FirstBlockCacheConfig

    threshold = front_threshold(setting, budget)
    return with_diffusers_cache(setting, lambda _: FirstBlockCacheConfig(threshold=threshold))


def magcache(setting: Setting, budget: int) -> Outcome:
    """MagCacheConfig with this model's ratios."""
    from diffusers import MagCacheConfig

    rule = mag_rule(setting, budget)
    config = MagCacheConfig(
        # It holds the ratios in float32: keep off the edge.
        threshold=rule.threshold * (1 + 1e-4),
        max_skip_steps=rule.max_skip,
        retention_ratio=MAG_RETENTION,
        num_inference_steps=setting.steps,
        mag_ratios=list(rule.ratios),
    )
    return with_diffusers_cache(setting, lambda _: config)


def taylorseer_steps(interval: int, before: int, steps: int) -> list[int]:
    """The steps that diffusers' TaylorSeer computes."""
    return [s for s in range(steps) if s < before or (s - before - 1) % interval == 0]


def _taylorseer(modules: list[str] | None) -> Callable[[Setting, int], Outcome]:
    def run(setting: Setting, budget: int) -> Outcome:
        from diffusers import TaylorSeerCacheConfig

        before = TaylorSeerCacheConfig().disable_cache_before_step
        choices = (
            (float(len(taylorseer_steps(n, before, setting.steps))), n)
            for n in range(2, setting.steps)
        )
        interval = best_count(choices, budget)
        config = TaylorSeerCacheConfig(cache_interval=interval, cache_identifiers=modules)

        def try_it() -> float:
            return with_diffusers_cache(setting.calibration(), lambda _: config).cost.full_steps

        # Not on every budget and seed: patterns that match nothing never will.
        computed = setting.remember(f"diffusers taylorseer {modules}", try_it)
        if computed == setting.steps:
            raise Absent(f"its patterns match no module here: {computed:.0f} steps ran in full")
        return with_diffusers_cache(setting, lambda _: config)

    return run


def fastercache(setting: Setting, budget: int) -> Outcome:
    """FasterCacheConfig: attentions only; without guidance its other half does not apply.

    Only the interval is set: it skips at timesteps below 681, as it ships.
    """
    from diffusers import FasterCacheConfig

    if setting.guidance_scale > 1:
        raise Absent("its guidance part needs a pipeline that passes both branches by name")
    interval = -(-setting.steps // budget)

    def configure(model: _InContext) -> Any:
        return FasterCacheConfig(
            spatial_attention_block_skip_range=interval,
            current_timestep_callback=lambda: int(model.timestep),
            is_guidance_distilled=True,
            tensor_format="BCHW",
        )

    return with_diffusers_cache(setting, configure)


# cache-dit --------------------------------------------------------------------------------------


@contextmanager
def cache_dit_applied(
    model: torch.nn.Module, calibrator: Any, computed: list[int]
) -> Iterator[torch.nn.Module]:
    """A copy of a DiT under cache-dit's DBCache with a mask of steps and a calibrator.

    cache-dit always computes the first block, also at skipped steps.

    Args:
        calibrator: a cache-dit calibrator configuration, or None.
        computed: 1 for each full step, 0 for the others.
    """
    import cache_dit
    from cache_dit.caching.cache_blocks import pattern_3_4_5

    wrapper: Any = pattern_3_4_5.CachedBlocks_Pattern_3_4_5
    # DiT reads its conditioning off its first block after the last one; the wrapper hides it.
    wrapper.norm1 = property(lambda self: self.transformer_blocks[0].norm1)
    own: Any = copy.deepcopy(model)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it reports every generation
    try:
        adapter = cache_dit.BlockAdapter(
            transformer=own,
            blocks=own.transformer_blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_3,
            check_forward_pattern=False,
        )
        cache_dit.enable_cache(
            adapter,
            cache_config=cache_dit.DBCacheConfig(
                Fn_compute_blocks=1,
                Bn_compute_blocks=0,
                residual_diff_threshold=1e9,
                max_warmup_steps=3,
                num_inference_steps=len(computed),
                steps_computation_mask=computed,
                steps_computation_policy="static",
            ),
            calibrator_config=calibrator,
        )
        yield own
        cache_dit.disable_cache(adapter)
    finally:
        logging.disable(before)
        del wrapper.norm1


def _cache_dit(config_name: str, **parameters: Any) -> Callable[[Setting, int], Outcome]:
    def run(setting: Setting, budget: int) -> Outcome:
        if importlib.util.find_spec("cache_dit") is None:
            raise Absent("cache-dit is not installed")
        import cache_dit

        if not hasattr(cache_dit, config_name):
            raise Absent(f"the installed cache-dit has no {config_name}")
        # Every skipped step costs its first block, so there are fewer full ones than the budget.
        share = 1 / len(setting.blocks)
        most = int((budget - setting.steps * share) / (1 - share))
        if most < 1:
            least = 1 + (setting.steps - 1) * share
            raise Absent(f"makes at least {least:.1f} full steps, more than {budget}")
        full = uniform(most, setting.steps).full_steps(setting.steps)
        mask = [int(step in full) for step in range(setting.steps)]
        calibrator = getattr(cache_dit, config_name)(**parameters)
        with cache_dit_applied(setting.model, calibrator, mask) as model:
            return setting.draw(model, taken=list(full), calibrator=config_name, **parameters)

    return run


_DIFFUSERS = "diffusers' "
_CACHE_DIT = "cache-dit's DBCache F1B0 on uniform steps with its "

INSTALLED = (
    Rival(
        "diffusers FirstBlockCache",
        "installed",
        _DIFFUSERS + "FirstBlockCacheConfig; the threshold is chosen for the budget",
        first_block,
    ),
    Rival(
        "diffusers MagCache",
        "installed",
        _DIFFUSERS + "MagCacheConfig with ratios calibrated on this model",
        magcache,
    ),
    Rival(
        "diffusers TaylorSeer",
        "installed",
        _DIFFUSERS
        + "TaylorSeerCacheConfig as it ships (order 1, bfloat16 factors, its own patterns)",
        _taylorseer(None),
    ),
    Rival(
        "diffusers TaylorSeer, all modules",
        "installed",
        _DIFFUSERS + "TaylorSeerCacheConfig with cache_identifiers for feed-forwards too",
        _taylorseer([r"transformer_blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.ff"]),
    ),
    Rival(
        "diffusers FasterCache",
        "installed",
        _DIFFUSERS + "FasterCacheConfig as it ships: attentions only, at timesteps below 681",
        fastercache,
    ),
    Rival(
        "cache-dit TaylorSeer-1",
        "installed",
        _CACHE_DIT + "TaylorSeerCalibratorConfig(taylorseer_order=1)",
        _cache_dit("TaylorSeerCalibratorConfig", taylorseer_order=1),
    ),
    Rival(
        "cache-dit FoCa",
        "installed",
        _CACHE_DIT + "FoCaCalibratorConfig",
        _cache_dit("FoCaCalibratorConfig"),
    ),
)
