"""Granularity `module` of every model in the table: the collapsed skip against literal oracles."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES, WIDTH
from literal import wrap

from foca_dit import (
    CacheState,
    FoCaCacheConfig,
    Schedule,
    StepMask,
    apply_foca_cache,
    foca_cache_stats,
    reasons,
    remove_foca_cache,
)
from foca_dit.adapters.hooks import find_hook
from foca_dit.adapters.install import install
from foca_dit.adapters.layout import blocks_of
from foca_dit.adapters.models import find_spec
from foca_dit.clock import NoiseLevels

FULL_STEPS = (0, 1, 2, 6, 10)
# Histories as exact as the features: what is compared is the order of operations.
CONFIG = FoCaCacheConfig(preset="paper", cache_interval=4, history_dtype=torch.float32)
all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def all_again(test):
    """The lines that the first test runs in every model: tracing them again adds a third."""
    return pytest.mark.no_cover(all_cases(test))


@pytest.mark.supports("one launch")
@all_cases
def test_fused_skip_equals_the_recursion_around_every_module_text_included(case):
    literal = case.model()
    assert wrap(literal, case.wrapped, FULL_STEPS) >= case.features
    expected = case.draw(literal)
    model = apply_foca_cache(case.model(), CONFIG)
    actual = case.draw(model)
    stats = foca_cache_stats(model)
    assert stats["granularity"] == "module"
    assert stats["collapsed_skips"] == 12 - len(FULL_STEPS)
    assert not stats["bypasses"]
    assert not stats["fallbacks"]
    torch.testing.assert_close(actual, expected, rtol=5e-6, atol=5e-6)
    full = case.draw(case.model())
    assert (actual - full).abs().max() > 3e-4  # it did forecast, and the gates let it through


@pytest.mark.supports("removal")
@all_again
def test_removal_leaves_the_model_as_it_was(case):
    model = case.model()
    expected, before = case.draw(model), _attributes(model)
    apply_foca_cache(model, CONFIG)
    assert not torch.equal(case.draw(model), expected)
    remove_foca_cache(model)
    assert torch.equal(case.draw(model), expected)
    assert _attributes(model) == before


def _attributes(model):
    return {(name, key) for name, module in model.named_modules() for key in vars(module)}


@all_again
def test_bytes_held_are_histories_times_slots_times_bytes_of_the_stream(case):
    model = apply_foca_cache(case.model(), CONFIG)
    case.draw(model, batch=2)
    stats = foca_cache_stats(model)
    assert stats["features"] == (case.slots or case.features)
    assert stats["nbytes"] == stats["features"] * 3 * 2 * case.tokens * WIDTH * 4
    case.draw(model, batch=1)
    assert foca_cache_stats(model)["nbytes"] == stats["nbytes"] // 2


@pytest.mark.supports("batch", "number of steps")
@all_again
def test_every_generation_starts_afresh(case):
    model = apply_foca_cache(case.model(), CONFIG)
    first = case.draw(model)
    for change in ({"seed": 1}, {"batch": 3}, {"steps": 9}):
        fresh = apply_foca_cache(case.model(), CONFIG)
        assert torch.equal(case.draw(model, **change), case.draw(fresh, **change)), change
    assert torch.equal(case.draw(model), first)


@all_again
def test_bfloat16_stays_near_float32(case):
    """Gates in float32 beside a bfloat16 stream, sums over features rounded once."""
    exact = case.draw(apply_foca_cache(case.model(), CONFIG))
    uncached = (case.draw(case.model().to(torch.bfloat16)).float() - case.draw(case.model())).abs()
    config = replace(CONFIG, history_dtype=None)
    model = apply_foca_cache(case.model().to(torch.bfloat16), config)
    actual = case.draw(model)
    assert actual.dtype == torch.bfloat16
    stats = foca_cache_stats(model)
    assert stats["skipped_steps"] == 12 - len(FULL_STEPS)
    assert stats["nbytes"] == stats["features"] * 3 * 2 * case.tokens * WIDTH * 2
    # The model itself rounds at every operation; forecasts amplify that by less than 9 (N = 4).
    assert (actual.float() - exact).abs().mean() < 9 * uncached.mean()


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_histories_of_another_dtype(name):
    """Histories in float32 of a bfloat16 model are twice as large."""
    (case,) = (c for c in CASES if c.name == name)
    model = apply_foca_cache(case.model().to(torch.bfloat16), CONFIG)
    assert case.draw(model).dtype == torch.bfloat16
    stats = foca_cache_stats(model)
    assert stats["nbytes"] == stats["features"] * 3 * 2 * case.tokens * WIDTH * 4


@pytest.mark.parametrize("granularity", ["module", "stack"])
@all_again
def test_nothing_else_reads_the_stream_that_forecasts_are_added_in(case, granularity):
    """So that no copy is needed: with one, every bit is the same."""
    images = []
    for new_stream in (True, False):
        model = apply_foca_cache(case.model(), replace(CONFIG, granularity=granularity))
        layout = find_hook(model).layout
        assert layout.new_stream
        layout.new_stream = new_stream
        images.append(case.draw(model))
        assert foca_cache_stats(model)["skipped_steps"] == 7
    assert torch.equal(*images)


@pytest.mark.parametrize("case", [c for c in CASES if c.modular], ids=lambda case: case.name)
def test_one_launch_equals_module_by_module_equals_sums_over_features(case):
    """A mask with equal columns keeps one history per feature, so all three forms can be had."""
    mask = np.isin(np.arange(12), FULL_STEPS)[:, None].repeat(case.features, axis=1)
    per_feature = replace(CONFIG, schedule=StepMask(mask), cache_interval=None)
    images = []
    for config, collapse in ((CONFIG, True), (per_feature, True), (per_feature, False)):
        model = apply_foca_cache(case.model(), config)
        find_hook(model).collapse = collapse
        images.append(case.draw(model))
        stats = foca_cache_stats(model)
        slots = case.features if config is per_feature else case.slots or case.features
        assert stats["features"] == slots
        assert stats["skipped_steps"] == 7
        assert stats["collapsed_skips"] == (7 if collapse else 0)
    torch.testing.assert_close(images[1], images[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(images[0], images[1], rtol=1e-5, atol=1e-5)


@all_cases
def test_a_mask_over_features_is_followed_or_falls_back_and_says_so(case):
    """Where a text stream is alive between the blocks, forecasting single features is refused."""
    mask = np.ones((12, case.features), dtype=bool)
    mask[3:9, :1] = False
    model = apply_foca_cache(case.model(), FoCaCacheConfig(preset="paper", schedule=StepMask(mask)))
    actual, stats = case.draw(model), foca_cache_stats(model)
    if case.modular:
        assert (stats["full_steps"], stats["mixed_steps"]) == (6, 6)
        assert not torch.equal(actual, case.draw(case.model()))
        return
    assert (stats["full_steps"], stats["mixed_steps"]) == (12, 0)
    ((reason, times),) = stats["fallbacks"].items()
    assert times == 6
    assert "second stream, which has no history" in reason
    assert torch.equal(actual, case.draw(case.model()))


class EveryOther(Schedule):
    """Features with odd numbers are computed at every step, the others at every second one."""

    def next_full(self, anchors, feature=0):
        return anchors[-1] + 2 - feature % 2 if anchors else 0


@pytest.mark.parametrize("case", [c for c in CASES if c.slots], ids=lambda case: case.name)
def test_sums_over_features_are_computed_together_or_not_at_all(case):
    model = apply_foca_cache(case.model(), FoCaCacheConfig(preset="paper", schedule=EveryOther()))
    actual, stats = case.draw(model), foca_cache_stats(model)
    assert (stats["full_steps"], stats["mixed_steps"]) == (12, 0)
    (reason,) = set(stats["fallbacks"]) - {reasons.SECOND_STEP}
    assert "the histories are sums over features" in reason
    assert torch.equal(actual, case.draw(case.model()))


@all_cases
def test_a_model_split_in_stages_adds_once_per_stage(case):
    """What `device_map` makes of it: here every second block counts as another device's."""
    model, whole = case.model(), apply_foca_cache(case.model(), CONFIG)
    spec, state = find_spec(model), CacheState(CONFIG, restartable=True)
    position = {block: i // 2 for i, (_, block) in enumerate(blocks_of(model, spec))}
    install(model, spec, "module", state, NoiseLevels(), stage_of=position.get)
    stages = find_hook(model).layout.stages
    assert len(stages) > 1
    torch.testing.assert_close(case.draw(model), case.draw(whole), rtol=1e-5, atol=1e-5)
    assert state.stats.collapsed_skips == 7


@pytest.mark.supports("exception")
@all_cases
def test_a_step_that_fails_half_way_is_repeated_without_a_trace(case):
    """At every step, full or skipped, the head fails once; then the same step is called again."""
    calm = apply_foca_cache(case.model(), CONFIG)
    expected = case.draw(calm)
    model, broken = apply_foca_cache(case.model(), CONFIG), []
    head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    last = list(model.get_submodule(find_spec(model).groups[-1].path).children())[-1]
    for module in (head, next(last.children())):
        module.register_forward_pre_hook(lambda *_: _fail_once(broken))
    run = model.forward

    def stubborn(*args, **kwargs):
        broken.append(True)
        try:
            return run(*args, **kwargs)
        except FloatingPointError:
            return run(*args, **kwargs)

    model.forward = stubborn
    assert torch.equal(case.draw(model), expected)


def _fail_once(broken):
    if broken:
        broken.clear()
        raise FloatingPointError
