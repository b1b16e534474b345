"""Granularity `module` of every model in the table: the collapsed skip against literal oracles."""

import pytest
import torch
from cases import CASES
from literal import wrap

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats

FULL_STEPS = (0, 1, 2, 6, 10)
CONFIG = FoCaCacheConfig(preset="paper", cache_interval=4)
all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


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
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)
    full = case.draw(case.model())
    assert (actual - full).abs().max() > 1e-3  # it did forecast, and the gates let it through
