"""Configuration: every wrong value is refused with the field, what was expected and what came."""

import pytest
import torch

from foca_dit import (
    Adaptive,
    CacheState,
    FoCaCacheConfig,
    FullSteps,
    Interval,
    apply_foca_cache,
    cache_scope,
    remove_foca_cache,
    schemes,
)
from foca_dit.config import GRANULARITIES, HISTORY_DTYPES

BAD_CONFIGS = {
    "preset": (
        {"preset": "fastest"},
        ValueError,
        r"'preset'.*'default', 'paper', 'fast'.*'fastest'",
    ),
    "interval 0": (
        {"cache_interval": 0},
        ValueError,
        r"FoCaCacheConfig.*'cache_interval'.*>= 1.*got 0",
    ),
    "interval 2.5": ({"cache_interval": 2.5}, TypeError, r"'cache_interval'.*integer.*2\.5"),
    "warm-up 0": (
        {"disable_cache_before_step": 0},
        ValueError,
        r"'disable_cache_before_step'.*>= 1.*got 0",
    ),
    "tail -1": (
        {"disable_cache_after_step": -1},
        ValueError,
        r"'disable_cache_after_step'.*>= 0.*got -1",
    ),
    "scheme name": ({"scheme": "focca"}, ValueError, r"focca"),
    "scheme type": ({"scheme": 3}, TypeError, r"'scheme'.*got 3"),
    "granularity": ({"granularity": "block"}, ValueError, r"'granularity'.*'module'.*'block'"),
    "time": ({"time": "seconds"}, ValueError, r"'time'.*'log_snr'.*'seconds'"),
    "history": ({"history_dtype": torch.int8}, ValueError, r"'history_dtype'.*bfloat16.*int8"),
    "schedule": ({"schedule": [0, 1]}, TypeError, r"'schedule'.*a Schedule.*\[0, 1\]"),
    "tol": ({"tol": 0.0}, ValueError, r"'tol'.*above 0"),
    "tol and interval": (
        {"tol": 0.1, "cache_interval": 3},
        ValueError,
        r"'cache_interval'.*None beside 'tol'.*got 3",
    ),
    "tol and schedule": (
        {"tol": 0.1, "schedule": FullSteps([0])},
        ValueError,
        r"'tol'.*None beside a schedule.*got 0\.1",
    ),
    "two schedules": (
        {"schedule": FullSteps([0]), "cache_interval": 3},
        ValueError,
        r"'cache_interval'.*None.*got 3",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_values_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        FoCaCacheConfig(**arguments)


def test_presets_and_overrides():
    assert FoCaCacheConfig().resolve().schedule == Adaptive(tol=0.01, first=3)
    assert FoCaCacheConfig(cache_interval=5).resolve().schedule == Interval(5, warmup=3)
    assert FoCaCacheConfig("paper").resolve().schedule == Interval(5, warmup=3)
    assert FoCaCacheConfig("fast").resolve().schedule == Adaptive(tol=0.04, first=3)
    assert FoCaCacheConfig(tol=0.1).resolve().schedule == Adaptive(tol=0.1, first=3)
    bounded = FoCaCacheConfig(disable_cache_before_step=4, disable_cache_after_step=40)
    assert bounded.resolve().schedule == Adaptive(tol=0.01, first=4, tail=40)
    assert FoCaCacheConfig("paper").resolve().scheme == schemes.FoCa(feedback=1.0)
    settings = FoCaCacheConfig(
        cache_interval=3,
        disable_cache_before_step=2,
        disable_cache_after_step=40,
        scheme="reuse",
        granularity="output",
        time="sigma",
        history_dtype=torch.float32,
    ).resolve()
    assert settings.schedule == Interval(3, warmup=2, tail=40)
    assert isinstance(settings.scheme, schemes.Reuse)
    assert (settings.granularity, settings.time) == ("output", "sigma")
    assert settings.history_dtype == torch.float32


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_histories_have_the_features_dtype_but_float32_modules_half_of_it(granularity):
    by_itself = FoCaCacheConfig(granularity=granularity).resolve()
    narrow = torch.bfloat16 if granularity == "module" else torch.float32
    assert by_itself.kept_as(torch.float32) == narrow
    for dtype in (torch.bfloat16, torch.float16):
        assert by_itself.kept_as(dtype) == dtype
    for chosen in HISTORY_DTYPES:
        settings = FoCaCacheConfig(granularity=granularity, history_dtype=chosen).resolve()
        assert {settings.kept_as(dtype) for dtype in HISTORY_DTYPES} == {chosen}


def test_models_that_are_not_supported():
    for thing in (torch.nn.Linear(2, 2), "a path", None):
        with pytest.raises(TypeError, match="argument 'model_or_pipeline'"):
            apply_foca_cache(thing)


def test_applying_twice_and_removing_twice(dit):
    apply_foca_cache(dit)
    with pytest.raises(ValueError, match="already has a cache"):
        apply_foca_cache(dit)
    remove_foca_cache(dit)
    with pytest.raises(ValueError, match="has no cache"):
        remove_foca_cache(dit)
    with pytest.raises(ValueError, match="has no cache"), cache_scope(dit, None):
        pass


def test_a_state_serves_one_model(dit):
    apply_foca_cache(dit, FoCaCacheConfig(granularity="module"))
    state = CacheState()
    with cache_scope(dit, state):
        pass
    remove_foca_cache(dit)
    apply_foca_cache(dit, FoCaCacheConfig(granularity="stack"))
    with (
        pytest.raises(ValueError, match=r"6 features at module.*1 features at stack"),
        cache_scope(dit, state),
    ):
        pass


def test_a_state_without_a_model():
    with pytest.raises(RuntimeError, match="use it through cache_scope"):
        CacheState().enter(1.0, torch.zeros(1))
