"""Two processes (gloo): guidance branches on different ranks, tokens split over ranks."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from models import call_dit, draw_flux, tiny_dit, tiny_flux

from foca_dit import Adaptive, FoCaCacheConfig, apply_foca_cache, foca_cache_stats

RANKS = 2
STEPS = 14


def _launch(work, tmp_path, *args):
    """Runs `work(rank, *args)` in two processes; what they return, by rank."""
    mp.spawn(_rank, (work, str(tmp_path), args), nprocs=RANKS)
    return [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def _rank(rank, work, folder, args):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    try:
        torch.save(work(rank, *args), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def _config(granularity, reduce=None):
    schedule = Adaptive(tol=0.5, reduce=reduce)
    return FoCaCacheConfig(schedule=schedule, granularity=granularity)


def _guided(model, labels, gather):
    """A loop with guidance: `labels` are the branches computed here, `gather` brings all."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(STEPS):
        inputs = x.expand(len(labels), -1, -1, -1).contiguous()
        mine = call_dit(model, [1000.0 - 70 * step], inputs, torch.tensor(labels))[0]
        cond, uncond = gather(mine)
        x = x - 0.05 * (uncond + 2.0 * (cond - uncond))[None]
    return x


def _gather(mine):
    parts = [torch.empty_like(mine) for _ in range(RANKS)]
    dist.all_gather(parts, mine)
    return torch.cat(parts)


def _a_branch_each(rank, granularity):
    model = apply_foca_cache(tiny_dit(), _config(granularity, dist.all_reduce))
    image = _guided(model, [(3, 10)[rank]], _gather)
    stats = foca_cache_stats(model)
    return image, stats["schedule"], stats["skipped_steps"]


@pytest.mark.parametrize(
    "granularity",
    ["module", *(pytest.param(g, marks=pytest.mark.slow) for g in ("stack", "output"))],
)
def test_guidance_branches_on_different_ranks(granularity, tmp_path):
    """With the defects all-reduced the ranks decide as one process with a batch of two does."""
    ranks = _launch(_a_branch_each, tmp_path, granularity)
    model = apply_foca_cache(tiny_dit(), _config(granularity))
    expected = _guided(model, [3, 10], lambda both: both)
    stats = foca_cache_stats(model)
    assert stats["skipped_steps"] > 3
    for image, schedule, skipped in ranks:
        assert schedule == stats["schedule"]
        assert skipped == stats["skipped_steps"]
        torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(ranks[0][0], ranks[1][0])


def _context_parallel(rank, granularity):
    from diffusers import ContextParallelConfig

    model = tiny_flux()
    try:
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS))
    except ZeroDivisionError as error:
        return repr(error)
    uncached = draw_flux(model)
    apply_foca_cache(model, _config(granularity, dist.all_reduce))
    image = draw_flux(model, steps=STEPS)
    stats = foca_cache_stats(model)
    return uncached, image, stats["schedule"], stats["skipped_steps"]


def test_context_parallelism_of_diffusers(tmp_path):
    """Each rank has half of the tokens, and a history of them; all decide alike."""
    ranks = _launch(_context_parallel, tmp_path, "module")
    if isinstance(ranks[0], str):
        pytest.skip(f"enable_parallelism counts accelerators, and there is none: {ranks[0]}")
    plain = tiny_flux()
    uncached = draw_flux(plain)
    model = apply_foca_cache(copy.deepcopy(plain), _config("module"))
    expected = draw_flux(model, steps=STEPS)
    stats = foca_cache_stats(model)
    for theirs, image, schedule, skipped in ranks:
        torch.testing.assert_close(theirs, uncached, rtol=1e-4, atol=1e-4)
        assert schedule == stats["schedule"]
        assert skipped == stats["skipped_steps"] > 3
        torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)
