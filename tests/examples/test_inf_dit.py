"""examples/inf_dit: blocks that are generated one after another, each with a cache of its own."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/inf_dit"
sys.path[:0] = [str(EXAMPLE), str(ROOT / "tests/layer")]
from block_attention import AllAtOnce, RowMemory, cut, join, places  # noqa: E402
from caching import BlockCaches  # noqa: E402
from inf_dit import SIDE, InfDiT  # noqa: E402
from literal import wrap  # noqa: E402
from pixels import bicubic, conditions, shrink  # noqa: E402
from upsample import WEIGHTS, block_by_block, load, timesteps, upsample  # noqa: E402

from foca_dit import (  # noqa: E402
    Adaptive,
    CacheState,
    FoCaCacheConfig,
    FullSteps,
    apply_foca_cache,
    cache_scope,
    foca_cache_stats,
    remove_foca_cache,
)

STEPS, GRID = 20, (2, 3)
FULL_STEPS = (0, 1, 2, 6, 10, 14, 18)
CACHED = {"layers": ("attention", "cross", "mlp")}
PAPER = {"preset": "paper", "cache_interval": 4, "history_dtype": torch.float32}


def tiny():
    torch.manual_seed(0)
    model = InfDiT(width=32, heads=2, depth=3).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def photo(rows=GRID[0], columns=GRID[1]):
    generator = torch.Generator().manual_seed(3)
    return shrink(torch.rand(2, 1, SIDE * rows, SIDE * columns, generator=generator) * 2 - 1)


def draw(model, **kwargs):
    return upsample(model, photo(), STEPS, **kwargs)


def draw_cached(config, together=True):
    model = tiny()
    caches = BlockCaches(model, config, together)
    return draw(model, scope=caches, memory=caches.memory), caches.stats()


def velocity(model, x, low, memory=None):
    """The velocity of all blocks at timestep 400, [B, P, 1, SIDE, SIDE]."""
    grid = (low.shape[2] * 2 // SIDE, low.shape[3] * 2 // SIDE)
    t, seen = torch.tensor([400.0]), conditions(low)
    if memory is None:
        out = model(cut(x, SIDE), t, *seen, AllAtOnce(*grid))
    else:
        out = block_by_block(model, cut(x, SIDE), t, *seen, grid, memory)
    return out.unflatten(0, (-1, grid[0] * grid[1]))


def test_blocks_are_cut_and_joined_row_by_row():
    image = torch.arange(2 * 28 * 42).view(2, 1, 28, 42).float()
    blocks = cut(image, SIDE)
    assert torch.equal(blocks[4], image[0, :, 14:, 14:28])
    assert torch.equal(join(blocks, 2, 3), image)


def test_around_is_the_block_and_its_eight_neighbours():
    low = photo(3, 3)
    upsampled, around = conditions(low)
    assert torch.equal(around[4], low[0])  # the middle block of the first image sees all of it
    assert (around[0, :, :7] == -1).all()  # above the image there is black
    assert torch.equal(join(upsampled, 3, 3), bicubic(low))


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (4, 3), (1, 5)])
def test_one_block_after_another_equals_all_at_once(grid):
    model, low = tiny(), photo(*grid)
    x = torch.randn(bicubic(low).shape)
    one_by_one = velocity(model, x, low, RowMemory())
    torch.testing.assert_close(one_by_one, velocity(model, x, low), rtol=1e-5, atol=1e-5)


def test_a_block_is_reached_by_its_left_upper_left_and_upper_neighbours_alone():
    """With one layer; more layers reach further, but never to the right or up."""
    torch.manual_seed(0)
    model, low = InfDiT(32, 2, depth=1).eval().requires_grad_(False), photo(4, 4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    x, order = torch.randn(bicubic(low).shape), places(4, 4)
    before = velocity(model, x, low)
    x[:, :, SIDE : 2 * SIDE, SIDE : 2 * SIDE] += 1  # block (1, 1)
    changed = (velocity(model, x, low) != before).flatten(2).any(2).any(0)
    reached = {place for place, is_changed in zip(order, changed, strict=True) if is_changed}
    assert reached == {(1, 1), (1, 2), (2, 2), (2, 1)}


def test_the_memory_holds_a_row_and_two_blocks_however_tall_the_image():
    model, low, held = tiny(), photo(5, 4), []

    class Watched(RowMemory):
        def hear(self, layer, keys, values):
            found = super().hear(layer, keys, values)
            held.append(self.nbytes / (2 * keys.nbytes * 3))  # blocks, at the last of 3 layers
            return found

    velocity(model, torch.randn(bicubic(low).shape), low, Watched())
    assert max(held) == pytest.approx(4 + 2)


def test_fused_skip_equals_the_recursion_around_every_module_of_every_block():
    literal, positions = tiny(), GRID[0] * GRID[1]
    assert wrap(literal, CACHED, FULL_STEPS, branches=positions) == 7
    model = tiny()
    caches = BlockCaches(model, FoCaCacheConfig(**PAPER))
    actual = draw(model, scope=caches, memory=caches.memory)
    stats = caches.stats()
    assert (stats["full_steps"], stats["skipped_steps"]) == (7, 13)
    assert stats["collapsed_skips"] == 13
    expected = draw(literal)
    torch.testing.assert_close(actual, expected, rtol=5e-6, atol=5e-6)
    assert (actual - draw(tiny())).abs().max() > 1e-3


def test_positions_with_full_steps_of_their_own_hear_what_their_neighbours_last_computed():
    """Each position a CacheState; the oracle is a copy of the model per position."""
    steps = [(0, 1, 2, 6, 10, 14, 18), (0, 1, 3, 5, 7, 9, 15), (0, 1, 2, 3, 11, 12, 19)]
    own = {place: steps[i % 3] for i, place in enumerate(places(*GRID))}
    copies = {place: copy.deepcopy(tiny()) for place in own}
    for place, literal in copies.items():
        wrap(literal, CACHED, own[place])

    def dispatch(*args):
        return copies[tuple(args[-1].places()[0].tolist())](*args)

    expected = draw(dispatch, memory=RowMemory(keep=True))
    model = apply_foca_cache(tiny(), FoCaCacheConfig(**PAPER))
    paper = FoCaCacheConfig(preset="paper", history_dtype=torch.float32)
    configs = {s: dataclasses.replace(paper, schedule=FullSteps(s)) for s in steps}
    states = {place: CacheState(configs[s]) for place, s in own.items()}

    def scope(place):
        return cache_scope(model, states[place])

    actual = draw(model, scope=scope, memory=RowMemory(keep=True))
    torch.testing.assert_close(actual, expected, rtol=5e-6, atol=5e-6)
    for place, state in states.items():
        assert foca_cache_stats(model, state)["full_steps"] == len(own[place])


def test_a_neighbour_that_was_not_computed_in_this_step_is_an_error():
    model = apply_foca_cache(tiny(), FoCaCacheConfig(**PAPER))
    skips = CacheState(FoCaCacheConfig(preset="paper", schedule=FullSteps((0, 1, 2))))
    computes = CacheState(FoCaCacheConfig(preset="paper", schedule=FullSteps(range(STEPS))))

    def scope(place):
        return cache_scope(model, skips if place == (0, 0) else computes, branch=str(place))

    with pytest.raises(RuntimeError, match=r"\(0, 1\) is computed, but its neighbour \(0, 0\)"):
        draw(model, scope=scope)


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
def test_a_cache_per_position_equals_one_for_all_blocks_at_once(granularity):
    config = FoCaCacheConfig(**PAPER, granularity=granularity)
    one_by_one, stats = draw_cached(config)
    model = apply_foca_cache(tiny(), config)
    with cache_scope(model, state := CacheState(config)):
        at_once = draw(model, at_once=True)
    torch.testing.assert_close(one_by_one, at_once, rtol=1e-5, atol=1e-5)
    assert stats["nbytes"] == foca_cache_stats(model, state)["nbytes"]


@pytest.mark.parametrize("together", [True, False])
def test_adaptive_positions_keep_the_budget(together):
    schedule = Adaptive(budget=8, timesteps=timesteps(STEPS)[:-1])
    images, stats = draw_cached(FoCaCacheConfig(schedule=schedule), together)
    assert stats["full_steps"] == 8
    assert (images - draw(tiny())).abs().mean() < 0.05


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
def test_removal_is_bit_identical(granularity):
    model = tiny()
    expected = draw(model)
    caches = BlockCaches(model, FoCaCacheConfig(**PAPER, granularity=granularity))
    assert not torch.equal(draw(model, scope=caches, memory=caches.memory), expected)
    remove_foca_cache(model)
    assert torch.equal(draw(model), expected)
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_trained_model_is_small_and_runs_without_diffusers():
    assert WEIGHTS.stat().st_size < 4e6
    code = (
        "import sys, torch\n"
        f"sys.path.insert(0, {str(EXAMPLE)!r})\n"
        "from caching import BlockCaches\n"
        "from foca_dit import FoCaCacheConfig\n"
        "from upsample import load, upsample\n"
        "model = load()\n"
        "caches = BlockCaches(model, FoCaCacheConfig(cache_interval=5))\n"
        "low = torch.full((1, 1, 14, 14), -1.0)\n"
        "images = upsample(model, low, 20, scope=caches, memory=caches.memory)\n"
        "assert images.shape == (1, 1, 28, 28) and caches.stats()['full_steps'] == 6\n"
        "assert (images + 1).abs().mean() < 0.1  # black stays black\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'diffusers']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_trained_model_reaches_from_block_to_block():
    """Zeroed at the start, the layers must have learned to listen to what neighbours say."""
    model, low = load(), photo(1, 2)
    x = torch.randn(bicubic(low).shape)
    before = velocity(model, x, low)[:, 1]
    x[..., :SIDE] = -x[..., :SIDE]
    assert (velocity(model, x, low)[:, 1] - before).abs().mean() > 1e-3


def test_the_table_is_the_measured_one():
    import compare

    rows = json.loads((ROOT / "benchmarks/results/inf-dit.json").read_text())
    text = (EXAMPLE / "README.md").read_text()
    assert "<!-- measured:begin -->" in text
    assert compare.updated(text, rows) == text, "run python examples/inf_dit/compare.py --table"
