"""What a user chooses: one frozen dataclass, and the presets behind its `None`s."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from foca_dit import schemes, times
from foca_dit.schedules import Adaptive, FullSteps, Interval, Schedule
from foca_dit.schemes.base import fault, require_int
from foca_dit.tuned import TunedPlan

GRANULARITIES = ("module", "stack", "output")
HISTORY_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# docs/quality.md says what they were chosen from.
MEASURED_FOCA = schemes.FoCa(reading="rolling", feedback=0.5, first_slope=0.25)
PRESETS: dict[str, dict[str, Any]] = {
    # As good as we know how, uncalibrated: a quarter to a half of 50 steps in full.
    "default": {
        "scheme": MEASURED_FOCA,
        "schedule": Adaptive(tol=0.01),
        "granularity": "stack",
        "time": "log_snr",
    },
    # The recursion and the schedule as the paper writes them, on what the paper caches.
    "paper": {
        "scheme": schemes.FoCa(reading="rolling", feedback=1.0),
        "schedule": Interval(5),
        "granularity": "module",
        "time": "step",
    },
    # 9 to 15 of 50 steps in full: the picture is another in its details.
    "fast": {
        "scheme": MEASURED_FOCA,
        "schedule": Adaptive(tol=0.04),
        "granularity": "stack",
        "time": "log_snr",
    },
}


@dataclass(frozen=True)
class Settings:
    """A configuration with nothing left open: what `CacheState` is built from."""

    scheme: schemes.Scheme
    schedule: Schedule
    granularity: str
    time: str | Callable[[float], float]
    history_dtype: torch.dtype | None
    cuda_graph: bool = False

    def kept_as(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype in which the history of a feature of `dtype` is stored."""
        if self.history_dtype is not None:
            return self.history_dtype
        # Twice as many features as blocks: half the memory, half of what a skipped step reads, and
        # a few hundredths of a dB (docs/quality.md).
        narrowed = self.granularity == "module" and dtype == torch.float32
        return torch.bfloat16 if narrowed else dtype


@dataclass(frozen=True)
class FoCaCacheConfig:
    """How to cache. Every field left at `None` is filled in by the preset.

    Args:
        preset: `"default"`, `"paper"` or `"fast"`.
        cache_interval: N: after the warm-up, every N-th step is computed in full. 1 caches nothing.
            A number selects the uniform interval in place of the preset's adaptive one.
        disable_cache_before_step: number of full steps at the start of a generation (the warm-up),
            at least 1. The paper uses 3 on FLUX and 2 on DiT-XL/2. Ignored beside `schedule`.
        disable_cache_after_step: this step and all later ones are computed in full. None: no tail.
        scheme: what forecasts a feature between full steps: a name from `schemes.names()` or a
            scheme object such as `schemes.TaylorSeer(order=2)`.
        schedule: replaces the interval by any other schedule, e.g. `FullSteps([0, 1, 2, 4, 8])`.
            `cache_interval` and `disable_cache_after_step` must then stay unset.
        granularity: what is cached. `"module"`: the output of every attention and feed-forward (as
            in the paper); `"stack"`: the summed change made by all blocks, one feature in all;
            `"output"`: the model's prediction.
        time: the time variable that forecasts are made in: `"step"` (index), `"sigma"`,
            `"log_snr"`, or a function from the model's timestep to a number.
        history_dtype: storage of the history, one of bfloat16, float16, float32. None: the dtype of
            the feature itself, but bfloat16 at granularity `"module"` for float32 features and for
            sums over float16 ones.
        tol: the tolerance of the adaptive interval, `Adaptive(tol=tol)`: the one knob between speed
            and quality. `cache_interval` must then stay unset.
        plan: a file written by `foca-dit tune`. It brings scheme, schedule, granularity and time,
            which must then stay unset, and refuses a model or sampler that it was not tuned for.
        cuda_graph: replay skipped steps as one CUDA graph, captured at the first of every
            generation: one launch instead of a few per block. The model's weights must then stay as
            they are until a generation ends. Where it cannot be done, the steps run as ever and
            `foca_cache_stats(model)["graph_refusals"]` says why (docs/models.md).

    Raises:
        ValueError, TypeError: a field that makes no sense; the message names it.
        OSError: the plan's file cannot be read.
    """

    preset: str = "default"
    cache_interval: int | None = None
    disable_cache_before_step: int = 3
    disable_cache_after_step: int | None = None
    scheme: str | schemes.Scheme | None = None
    schedule: Schedule | None = None
    granularity: str | None = None
    time: str | Callable[[float], float] | None = None
    history_dtype: torch.dtype | None = None
    plan: str | os.PathLike[str] | TunedPlan | None = None
    tol: float | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if self.plan is not None and not isinstance(self.plan, TunedPlan):
            object.__setattr__(self, "plan", TunedPlan.load(self.plan))
        self.resolve()

    def resolve(self) -> Settings:
        """Fills in the preset and checks every field."""
        _choice("preset", self.preset, tuple(PRESETS))
        preset = PRESETS[self.preset]
        granularity = _or(self.granularity, preset["granularity"])
        _choice("granularity", granularity, GRANULARITIES)
        time = _or(self.time, preset["time"])
        if not callable(time):
            _choice("time", time, times.names())
        if self.history_dtype is not None:
            _choice("history_dtype", self.history_dtype, HISTORY_DTYPES)
        _choice("cuda_graph", self.cuda_graph, (False, True))
        if isinstance(self.plan, TunedPlan):
            return self._planned(self.plan)
        scheme = self._scheme(preset["scheme"])
        if scheme.made_in not in (None, time):
            expected = f"{scheme.made_in!r}, in which scheme '{scheme.name}' was calibrated"
            raise ValueError(_fault("time", expected, time))
        return Settings(
            scheme=scheme,
            schedule=self._schedule(preset["schedule"]),
            granularity=granularity,
            time=time,
            history_dtype=self.history_dtype,
            cuda_graph=self.cuda_graph,
        )

    def _planned(self, plan: TunedPlan) -> Settings:
        for name in (
            "cache_interval",
            "disable_cache_after_step",
            "scheme",
            "schedule",
            "granularity",
            "time",
            "tol",
        ):
            value = getattr(self, name)
            if value not in (None, getattr(plan.origin, name, None)):
                raise ValueError(_fault(name, "None beside a plan (it decides alone)", value))
        return Settings(
            scheme=plan.scheme,
            schedule=FullSteps(plan.plan.full_steps),
            granularity=plan.origin.granularity,
            time="step",
            history_dtype=self.history_dtype,
            cuda_graph=self.cuda_graph,
        )

    def _scheme(self, default: schemes.Scheme) -> schemes.Scheme:
        scheme = _or(self.scheme, default)
        if isinstance(scheme, str):
            return schemes.get(scheme)
        if not isinstance(scheme, schemes.Scheme):
            raise TypeError(
                _fault("scheme", f"a name out of {schemes.names()} or a Scheme", scheme)
            )
        return scheme

    def _schedule(self, default: Adaptive | Interval) -> Schedule:
        if self.schedule is None:
            return self._interval(default)
        if not isinstance(self.schedule, Schedule):
            raise TypeError(_fault("schedule", "a Schedule", self.schedule))
        for name in ("cache_interval", "disable_cache_after_step", "tol"):
            if (value := getattr(self, name)) is not None:
                expected = "None beside a schedule of your own (it decides alone)"
                raise ValueError(_fault(name, expected, value))
        return self.schedule

    def _interval(self, default: Adaptive | Interval) -> Schedule:
        """The preset's schedule or the one asked for by `tol` or `cache_interval`."""
        name = "FoCaCacheConfig"
        warmup, tail = self.disable_cache_before_step, self.disable_cache_after_step
        require_int(name, "disable_cache_before_step", warmup, 1)
        if tail is not None:
            require_int(name, "disable_cache_after_step", tail, 0)
        if self.cache_interval is not None:
            if self.tol is not None:
                expected = "None beside 'tol' (the interval is then adaptive)"
                raise ValueError(_fault("cache_interval", expected, self.cache_interval))
            default = Interval(require_int(name, "cache_interval", self.cache_interval, 1))
        elif self.tol is not None:
            default = Adaptive(tol=self.tol)
        if isinstance(default, Interval):
            return replace(default, warmup=warmup, tail=tail)
        return replace(default, first=warmup, tail=tail)


def checked(config: FoCaCacheConfig | None, name: str) -> FoCaCacheConfig:
    """The configuration given to `name`; None is the default one.

    Raises:
        TypeError: it is none.
    """
    if config is None:
        return FoCaCacheConfig()
    if not isinstance(config, FoCaCacheConfig):
        raise TypeError(fault(name, "config", "a FoCaCacheConfig", type(config).__name__))
    return config


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(_fault(name, f"one of {listed}", value))


def _fault(name: str, expected: str, value: object) -> str:
    return fault("FoCaCacheConfig", name, expected, repr(value))
