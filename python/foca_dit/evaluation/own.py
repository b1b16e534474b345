"""Rows that need no code of their own: a sampler, or a scheme and a schedule of this project."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from foca_dit import schemes
from foca_dit.api import cache_scope, foca_cache, foca_cache_stats
from foca_dit.calibration.inflection import inflection_steps
from foca_dit.calibration.means import record_means
from foca_dit.config import HISTORY_DTYPES, FoCaCacheConfig
from foca_dit.evaluation.rival import Rival, uniform
from foca_dit.evaluation.setting import Outcome, Setting
from foca_dit.schedules import Adaptive, Interval, Schedule
from foca_dit.state import CacheState


def cached(setting: Setting, config: FoCaCacheConfig, **details: Any) -> Outcome:
    """A generation under one of this project's caches.

    With a state of its own, so that a schedule may skip the second step: a model left alone with
    its cache computes that one, to be sure how many calls make a step. And with histories in the
    model's dtype, as rivals keep them: what is compared is schemes.
    """
    if (dtype := getattr(setting.model, "dtype", None)) in HISTORY_DTYPES:
        config = dataclasses.replace(config, history_dtype=dtype)
    scheduler = setting.sampler()
    pipeline = SimpleNamespace(transformer=setting.model, scheduler=scheduler)
    state = CacheState(config)
    with foca_cache(pipeline, config) as model:
        with cache_scope(model, state):
            drawn = setting.draw(scheduler=scheduler, begin=state.reset, **details)
        stats = foca_cache_stats(model, state)
    if stats["bypasses"] or stats["fallbacks"]:
        raise RuntimeError(f"eval: the cache was bypassed: {stats['bypasses']}{stats['fallbacks']}")
    extra = {"granularity": stats["granularity"], "scheme": stats["scheme"]}
    if stats["schedule"]:
        extra["taken"] = stats["schedule"]
    return dataclasses.replace(
        drawn, details={**drawn.details, **extra}, nbytes=int(stats["nbytes"])
    )


def fewer_steps(setting: Setting, budget: int) -> Outcome:
    """The setting's sampler with as many steps as the budget, no cache."""
    return setting.draw(steps=budget, sampler=type(setting.sampler()).__name__)


def _solver(name: str) -> Callable[[Setting, int], Outcome]:
    """A multistep solver of diffusers, in the form that the model's prediction needs."""

    def run(setting: Setting, budget: int) -> Outcome:
        import diffusers

        kind, own = getattr(diffusers, name), setting.sampler()
        if setting.is_flow:
            scheduler = kind(
                use_flow_sigmas=True,
                prediction_type="flow_prediction",
                flow_shift=own.config.shift,
            )
        else:
            scheduler = kind.from_config(own.config)
        return setting.draw(scheduler=scheduler, steps=budget, sampler=name)

    return run


def _uniform(
    name: str, scheme: schemes.Scheme, granularity: str = "module", time: str = "step"
) -> Rival:
    def run(setting: Setting, budget: int) -> Outcome:
        schedule = uniform(budget, setting.steps)
        config = FoCaCacheConfig(
            scheme=started(scheme, schedule), schedule=schedule, granularity=granularity, time=time
        )
        detail = {"interval": schedule.interval, "warmup": schedule.warmup, "time": time}
        return cached(setting, config, **detail)

    return Rival(name, "uniform interval", scheme.citation, run)


def started(scheme: schemes.Scheme, schedule: Interval) -> schemes.Scheme:
    """The scheme told of the schedule's warm-up, where its published code goes by that.

    TaylorSeer's and HiCache's take no difference before its last step: second differences over
    single steps, extrapolated over a long first gap, are mostly roughness.
    """
    if not isinstance(scheme, (schemes.TaylorSeer, schemes.HiCache)):
        return scheme
    return dataclasses.replace(scheme, warmup=schedule.warmup)


def goc(setting: Setting, budget: int) -> Outcome:
    """GOC on FORA, with the inflection set of the calibration samples."""
    other = setting.calibration()

    def find() -> tuple[int, ...]:
        return inflection_steps(record_means(setting.model, "module", [other.draw]))

    scheme = schemes.GOC(1.2, setting.remember("inflection", find))
    schedule = uniform(budget, setting.steps)
    config = FoCaCacheConfig(scheme=scheme, schedule=schedule, granularity="module", time="step")
    return cached(setting, config, interval=schedule.interval, warmup=schedule.warmup)


def adaptive(setting: Setting, budget: int) -> Outcome:
    """The default preset on the adaptive interval, held to the budget."""
    return cached(setting, FoCaCacheConfig(schedule=Adaptive(budget=budget)))


def placed(setting: Setting, schedule: Schedule, granularity: str, **details: Any) -> Outcome:
    """Reuse on a schedule of a rival's."""
    config = FoCaCacheConfig(scheme=schemes.Reuse(), schedule=schedule, granularity=granularity)
    return cached(setting, config, **details)


_SOLVER = "as many evaluations as the budget, no cache; diffusers' "

SOLVERS = (
    Rival("fewer steps", "no cache", _SOLVER + "sampler of the full run", fewer_steps),
    Rival(
        "DPM-Solver++(2M)",
        "no cache",
        _SOLVER + "DPMSolverMultistepScheduler (use_flow_sigmas for flow matching); Lu et al., "
        "arXiv:2211.01095",
        _solver("DPMSolverMultistepScheduler"),
    ),
    Rival(
        "UniPC-2",
        "no cache",
        _SOLVER + "UniPCMultistepScheduler (use_flow_sigmas for flow matching); Zhao et al., "
        "arXiv:2302.04867",
        _solver("UniPCMultistepScheduler"),
    ),
)

UNIFORM = (
    _uniform("reuse (FORA)", schemes.Reuse()),
    _uniform("TaylorSeer-1", schemes.TaylorSeer(order=1)),
    _uniform("TaylorSeer-2", schemes.TaylorSeer(order=2)),
    _uniform("TaylorSeer-3", schemes.TaylorSeer(order=3)),
    *(
        _uniform(
            f"TaylorSeer-{order}, as published", schemes.TaylorSeer(order=order, official=True)
        )
        for order in (2, 3)
    ),
    _uniform("TaylorSeer-1, output only", schemes.TaylorSeer(order=1), granularity="output"),
    _uniform("BDF2 alone, rolling (= AB-Cache-2)", schemes.BDF2()),
    _uniform("BDF2 alone, frozen slope", schemes.BDF2(reading="frozen")),
    _uniform("AB-Cache-3", schemes.AdamsBashforth(order=3)),
    _uniform("HiCache-2", schemes.HiCache(order=2)),
    Rival("GOC", "uniform interval", schemes.GOC.citation + "; eta 1.2 as published for FORA", goc),
    _uniform("FoCa, rolling (paper, c = 1)", schemes.FoCa(reading="rolling", feedback=1.0)),
    _uniform("FoCa, anchored", schemes.FoCa(reading="anchored")),
    _uniform("FoCa, c = 1/2", schemes.FoCa(reading="rolling", feedback=0.5)),
    _uniform(
        "FoCa, c = 1/2, output only",
        schemes.FoCa(reading="rolling", feedback=0.5),
        granularity="output",
    ),
    *(
        _uniform(
            f"FoCa, c = {name}, log-SNR",
            schemes.FoCa(reading="rolling", feedback=c),
            granularity="stack",
            time="log_snr",
        )
        for name, c in (("1/2", 0.5), ("3/4", 0.75))
    ),
)

ADAPTIVE = (
    Rival(
        "FoCa, adaptive interval",
        "adaptive",
        "the preset `default` with schedule=Adaptive(budget=..); docs/method.md, The controller",
        adaptive,
    ),
)
