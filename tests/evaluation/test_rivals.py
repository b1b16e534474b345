"""Every row in a model: budgets kept, full steps counted, peers equal where they must be."""

import pytest
import torch

from foca_dit import FullSteps, schemes
from foca_dit.config import FoCaCacheConfig
from foca_dit.evaluation import own
from foca_dit.evaluation.blocks import DBCache, TeaCache
from foca_dit.evaluation.installed import taylorseer_steps, with_diffusers_cache
from foca_dit.evaluation.online import under_rule
from foca_dit.evaluation.rival import best_count, threshold_for, uniform
from foca_dit.evaluation.setting import Absent, Setting
from foca_dit.evaluation.suite import RIVALS

BY_NAME = {rival.name: rival for rival in RIVALS}
BUDGET = 7


@pytest.fixture(scope="module")
def outcomes(dit):
    """Every row once."""
    setting = Setting(dit, steps=12, images=2, seed=3)
    found = {}
    for rival in RIVALS:
        try:
            found[rival.name] = rival.run(setting, BUDGET)
        except Absent as reason:
            found[rival.name] = reason
    return found


@pytest.mark.parametrize("name", BY_NAME)
def test_rows_keep_the_budget(outcomes, name):
    outcome = outcomes[name]
    if isinstance(outcome, Absent):
        if name.startswith("cache-dit") and "not installed" in str(outcome):
            pytest.skip(str(outcome))
        assert name in ("diffusers TaylorSeer", "L2C-style mask"), outcome
        return
    assert torch.isfinite(outcome.images).all()
    if name == "diffusers FasterCache":  # skips attentions alone, and not at all timesteps
        assert outcome.cost.feedforward == 12 * 3
        assert outcome.cost.attention < 12 * 3
    elif name in ("TeaCache", "DBCache F1B0", "diffusers FirstBlockCache"):
        # They decide by what they see; the budget is kept on the seeds that set the threshold.
        assert 2 <= outcome.cost.full_steps < 12
    else:
        assert BUDGET - 2 <= outcome.cost.full_steps <= BUDGET


def test_rows_have_a_source_and_a_name_of_their_own():
    assert len(BY_NAME) == len(RIVALS)
    assert all(len(rival.source) > 20 for rival in RIVALS)


@pytest.mark.parametrize("name", ["TeaCache", "DBCache F1B0"])
def test_thresholds_keep_the_budget_where_they_were_chosen(dit, outcomes, name):
    details = outcomes[name].details
    rule = (
        TeaCache(details["threshold"], details["coefficients"], 12)
        if name == "TeaCache"
        else DBCache(details["threshold"])
    )
    chosen_on = Setting(dit, steps=12, images=2, seed=3).calibration()
    assert under_rule(chosen_on, rule).cost.full_steps <= BUDGET


def test_diffusers_first_block_cache_is_dbcache(outcomes):
    ours, theirs = outcomes["DBCache F1B0"], outcomes["diffusers FirstBlockCache"]
    torch.testing.assert_close(ours.images, theirs.images)
    assert ours.cost.full_steps == theirs.cost.full_steps
    assert ours.cost.full_steps < 12


def test_diffusers_magcache_is_magcache(outcomes):
    ours, theirs = outcomes["MagCache"], outcomes["diffusers MagCache"]
    torch.testing.assert_close(ours.images, theirs.images)
    assert ours.cost.full_steps == theirs.cost.full_steps


def test_diffusers_taylorseer_computes_the_steps_that_its_rule_names(outcomes):
    outcome = outcomes["diffusers TaylorSeer, all modules"]
    interval = outcome.details["config"]["cache_interval"]
    assert outcome.cost.full_steps == len(taylorseer_steps(interval, 3, 12))
    assert taylorseer_steps(5, 3, 12) == [0, 1, 2, 4, 9]


def test_diffusers_taylorseer_is_the_official_one_in_exact_arithmetic(setting):
    """The installed cache in float32 against this project's on the same full steps."""
    from diffusers import TaylorSeerCacheConfig

    config = TaylorSeerCacheConfig(
        cache_interval=4,
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[r"transformer_blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.ff"],
    )
    theirs = with_diffusers_cache(setting, lambda _: config)
    schedule = FullSteps(taylorseer_steps(4, 3, 12))
    ours = own.cached(
        setting,
        FoCaCacheConfig(
            scheme=schemes.TaylorSeer(order=1), schedule=schedule, granularity="module", time="step"
        ),
    )
    torch.testing.assert_close(ours.images, theirs.images, rtol=1e-3, atol=1e-3)


def test_cache_dit_computes_its_first_block_at_every_step(outcomes):
    pytest.importorskip("cache_dit")
    outcome = outcomes["cache-dit TaylorSeer-1"]
    full = len(outcome.details["taken"])
    assert outcome.cost.full_steps == pytest.approx(full + (12 - full) / 3)
    assert not torch.equal(outcome.images, outcomes["cache-dit FoCa"].images)


def test_l2c_computes_half_of_the_steps(setting):
    with pytest.raises(Absent, match="every second step"):
        BY_NAME["L2C-style mask"].run(setting, 5)
    outcome = BY_NAME["L2C-style mask"].run(setting, 9)
    assert 8 < outcome.cost.full_steps <= 9


def test_uniform_intervals_of_the_paper():
    def made(schedule):
        return schedule.interval, schedule.warmup, len(schedule.full_steps(50))

    assert made(uniform(18, 50)) == (3, 3, 18)
    assert made(uniform(12, 50)) == (5, 3, 12)
    assert made(uniform(9, 50)) == (7, 3, 9)
    with pytest.raises(Absent, match="no uniform interval"):
        uniform(0, 50)


def test_thresholds_are_the_smallest_that_keep_the_budget():
    threshold = threshold_for(lambda value: 20 if value < 0.3 else 7, 10)
    assert threshold == pytest.approx(0.3)
    with pytest.raises(Absent, match="at least 7"):
        threshold_for(lambda value: 20 if value < 0.3 else 7, 6)
    assert best_count([(5, "a"), (8, "b"), (9, "c")], 8) == "b"


def test_guidance_and_batches_run_through_all_kinds(dit, monkeypatch):
    """Two batches under guidance: caches start afresh, and costs are sums."""
    from foca_dit.evaluation import setting as module

    monkeypatch.setattr(module, "BATCH", 4)
    setting = Setting(dit, steps=8, images=8, guidance_scale=1.5)
    for name in ("FoCa, c = 1/2", "MagCache", "MeanCache", "LeMiCa", "diffusers MagCache"):
        outcome = BY_NAME[name].run(setting, 5)
        assert outcome.batches == 2, name
        assert outcome.cost.full_steps / 2 <= 5, name
        alone = BY_NAME[name].run(
            Setting(dit, steps=8, images=8, guidance_scale=1.5, memory=setting.memory), 5
        )
        assert torch.equal(alone.images, outcome.images), name
