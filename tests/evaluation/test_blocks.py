"""The rules of TeaCache, MagCache, DBCache, Delta-DiT on constructed numbers, then in a model."""

import math

import pytest
import torch

from foca_dit.evaluation.blocks import (
    DBCache,
    DeltaDiT,
    MagCache,
    Rule,
    TeaCache,
    relative_l1,
    smallest_max_skip,
    with_rule,
)
from foca_dit.evaluation.setting import Absent, Setting


def run(rule, values):
    """Steps at which a rule skips, when the modulated input takes these values."""
    rule.begin()
    streams = [torch.full((1, 2, 3), float(value)) for value in values]
    rule.first(lambda: streams[0])
    none = torch.zeros(1, 2, 3)
    return [k for k in range(1, len(values)) if rule.skips(k, none, lambda k=k: streams[k])]


def test_relative_l1():
    before, value = torch.tensor([1.0, -3.0]), torch.tensor([2.0, -3.5])
    assert relative_l1(value, before) == pytest.approx((1 + 0.5) / (1 + 3))
    assert relative_l1(before * 0, before * 0) == 0
    assert relative_l1(before, before * 0) == math.inf


def test_teacache_adds_up_changes_and_starts_anew_when_it_runs():
    values = [100 * 1.1**k for k in range(8)]  # a relative change of 0.1 at every step
    # poly(x) = 2x: 0.2 a step; 0.5 is passed at every third step; the last step runs.
    assert run(TeaCache(0.5, [2.0, 0.0], 8), values) == [1, 2, 4, 5]
    assert run(TeaCache(0.1, [2.0, 0.0], 8), values) == []
    assert run(TeaCache(9.0, [2.0, 0.0], 8), values) == [1, 2, 3, 4, 5, 6]


def test_teacache_compares_with_the_step_before_not_with_the_last_full_one():
    values = [100.0, 110.0, 100.0, 110.0, 100.0, 100.0]
    changes = [0.1, 10 / 110, 0.1, 10 / 110]
    assert sum(changes[:2]) < 0.2 < sum(changes[:3])
    assert run(TeaCache(0.2, [1.0, 0.0], 6), values) == [1, 2, 4]


def test_magcache_multiplies_ratios_and_adds_their_distance_from_1():
    ratios = [1.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9]
    # After retention 2: |1 - .9| = .1, + |1 - .81| = .29, + |1 - .729| = .561.
    rule = MagCache(0.3, ratios, max_skip=5, retention=2)
    rule.begin()
    assert [k for k in range(8) if rule.decides(k)] == [2, 3, 5, 6]
    rule = MagCache(math.inf, ratios, max_skip=1, retention=2)
    rule.begin()
    assert [k for k in range(8) if rule.decides(k)] == [2, 4, 6]
    assert rule.full_steps() == 5


def test_magcache_reaches_a_budget_by_longer_skips():
    ratios = [1.0] * 20
    chosen = smallest_max_skip(ratios, 2, 5, 1)
    assert MagCache(math.inf, ratios, chosen, 2).full_steps() <= 5
    assert MagCache(math.inf, ratios, chosen - 1, 2).full_steps() > 5
    with pytest.raises(Absent, match="cannot make 2 full steps"):
        smallest_max_skip(ratios, 3, 2, 1)


def test_dbcache_compares_the_front_with_that_of_the_last_full_step():
    rule, skipped = DBCache(0.25), []
    rule.begin()
    for step, front in enumerate([1.0, 1.1, 1.2, 1.3, 1.4, 1.7]):
        value = torch.full((1, 1, 2), front)
        if step and rule.skips(step, value, None):
            skipped.append(step)
        else:
            rule.ran(value)
    # 1.1 and 1.2 are within 25 % of 1.0; 1.3 runs; 1.4 is within 25 % of it; 1.7 is not.
    assert skipped == [1, 2, 4]


def test_delta_dit_skips_back_blocks_early_and_front_blocks_late():
    rule = DeltaDiT(interval=3, cached=2, boundary=5)
    assert [rule.span(step, 7) for step in (0, 4, 5, 9)] == [(5, 7), (5, 7), (0, 2), (0, 2)]
    assert [step for step in range(1, 8) if rule.skips(step, None, None)] == [1, 2, 4, 5, 7]
    assert rule.full_steps(8, 7) == pytest.approx(3 + 5 * 5 / 7)


class Never(Rule):
    def skips(self, step, front, modulated):
        return False


def test_a_rule_that_never_skips_changes_nothing(setting):
    model, cache = with_rule(setting, Never())
    assert torch.equal(setting.draw(model, begin=cache.begin).images, setting.draw().images)


@torch.inference_mode()
def test_a_skipped_step_adds_the_last_change_of_the_span(dit):
    class Second(Rule):
        def span(self, step, blocks):
            return 1, 2

        def skips(self, step, front, modulated):
            return step == 1

    _, cache = with_rule(Setting(dit), Second())
    blocks = dit.transformer_blocks
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, 4, 32, generator=generator)
    arguments = {"class_labels": torch.tensor([1])}
    early = {**arguments, "timestep": torch.tensor([900.0])}
    late = {**arguments, "timestep": torch.tensor([500.0])}
    cache(first, **early)
    got = cache(second, **late)
    x = blocks[0](first, **early)
    change = blocks[1](x, **early) - x
    expected = blocks[2](blocks[0](second, **late) + change, **late)
    torch.testing.assert_close(got, expected)
    assert cache.skipped == [1]
    assert cache.nbytes == change.nbytes


def test_delta_dits_steps_are_counted_by_blocks(setting):
    rule = DeltaDiT(interval=4, cached=2, boundary=6)
    model, cache = with_rule(setting, rule)
    outcome = setting.draw(model, begin=cache.begin)
    assert outcome.cost.full_steps == pytest.approx(rule.full_steps(12, 3))


def test_begin_starts_a_generation_afresh(setting):
    model, cache = with_rule(setting, DBCache(0.5))
    first = setting.draw(model, begin=cache.begin)
    assert cache.skipped  # else the test says nothing
    assert torch.equal(setting.draw(model, begin=cache.begin).images, first.images)
