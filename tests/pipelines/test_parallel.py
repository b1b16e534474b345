"""Two processes (gloo): guidance branches on ranks of their own, tokens or weights split."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import BY_NAME
from diffusers import ContextParallelConfig, TensorParallelConfig
from diffusers.hooks import tensor_parallel

from foca_dit import (
    Adaptive,
    FoCaCacheConfig,
    apply_foca_cache,
    foca_cache_stats,
    remove_foca_cache,
)

RANKS = 2
STEPS = 14


def _rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    try:
        torch.save([WORK[job[0]](rank, *job[1:]) for job in JOBS], f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What the ranks return, by job: two processes, started once, go through all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (str(folder),), nprocs=RANKS)
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]
    return dict(zip(JOBS, zip(*results, strict=True), strict=True))


def _config(granularity, reduce=None):
    schedule = Adaptive(tol=0.5, reduce=reduce)
    return FoCaCacheConfig(schedule=schedule, granularity=granularity, history_dtype=torch.float32)


@torch.no_grad()
def _guided(case, model, rank=None):
    """A loop with guidance: one batch of two here, or a branch on each rank."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *case.shape, generator=generator)
    calls = [case.inputs(1, generator) for _ in range(RANKS)]
    if "class_labels" in calls[0]:
        calls[1]["class_labels"] = torch.tensor([10])  # "no class"
    batch = {key: _merged(calls[0][key], calls[1][key]) for key in calls[0]}
    for step in range(STEPS):
        time = 1 - 0.07 * step
        if rank is None:
            both = case.velocity(model, torch.cat([x, x]), time, batch).chunk(RANKS)
        else:
            mine = case.velocity(model, x, time, calls[rank]).contiguous()
            both = [torch.empty_like(mine) for _ in range(RANKS)]
            dist.all_gather(both, mine)
        cond, uncond = both
        x = x - 0.05 * (uncond + 2.0 * (cond - uncond))
    return x


def _merged(one, other):
    """The argument of a batch of two; what both have in common has no batch."""
    differ = isinstance(one, torch.Tensor) and not torch.equal(one, other)
    return torch.cat([one, other]) if differ else one


def _a_branch_each(rank, name, granularity):
    case = BY_NAME[name]
    model = apply_foca_cache(case.model(), _config(granularity, dist.all_reduce))
    image = _guided(case, model, rank)
    stats = foca_cache_stats(model)
    return image, stats["schedule"], stats["skipped_steps"]


def _marked(jobs, feature):
    return [
        pytest.param(*job[1:], marks=pytest.mark.supports(feature), id="-".join(map(str, job[1:])))
        for job in jobs
    ]


BRANCHES = [("branches", name, "module") for name in ("dit", "flux", "wan")]
BRANCHES += [("branches", "dit", granularity) for granularity in ("stack", "output")]


@pytest.mark.parametrize(("name", "granularity"), _marked(BRANCHES, "branches on ranks"))
def test_guidance_branches_on_different_ranks(done, name, granularity):
    """With the defects all-reduced the ranks decide as one process with a batch of two does."""
    ranks = done["branches", name, granularity]
    case = BY_NAME[name]
    model = apply_foca_cache(case.model(), _config(granularity))
    expected = _guided(case, model)
    stats = foca_cache_stats(model)
    assert stats["skipped_steps"] > 3
    for image, schedule, skipped in ranks:
        assert schedule == stats["schedule"]
        assert skipped == stats["skipped_steps"]
        torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(ranks[0][0], ranks[1][0])


def _enable(model, config):
    """diffusers' own parallelism. It counts accelerators, of which this machine may have none."""
    if not torch.accelerator.is_available():
        torch.accelerator.device_count = lambda: 1
        tensor_parallel._SUPPORTED_TP_DEVICES += ("cpu",)
    model.enable_parallelism(config=config)


PARALLEL = {
    "context": lambda: ContextParallelConfig(ulysses_degree=RANKS),
    "tensor": lambda: TensorParallelConfig(tp_degree=RANKS),
}


def _even(case):
    """A text of six tokens instead of five: the ranks take half of them each."""
    generator = torch.Generator().manual_seed(1)
    width = case.inputs(1, generator)["encoder_hidden_states"].shape[-1]
    text = torch.randn(1, 6, width, generator=generator)
    return {
        "encoder_hidden_states": text,
        **({"txt_ids": torch.zeros(6, 3)} if case.name == "flux" else {}),
    }


def _split(rank, name, kind, granularity, cache_first):
    case = BY_NAME[name]
    model = case.model()
    if cache_first:
        apply_foca_cache(model, _config(granularity, dist.all_reduce))
    _enable(model, PARALLEL[kind]())
    if not cache_first:
        uncached = case.draw(model, batch=1, steps=3, **_even(case))
        apply_foca_cache(model, _config(granularity, dist.all_reduce))
    image = case.draw(model, batch=1, steps=STEPS, **_even(case))
    stats = foca_cache_stats(model)
    if cache_first:
        remove_foca_cache(model)
        uncached = case.draw(model, batch=1, steps=3, **_even(case))
    return uncached, image, stats["schedule"], stats["skipped_steps"]


SPLITS = [
    ("split", "flux", "context", "module", False),
    ("split", "wan", "context", "module", True),
    ("split", "wan", "context", "stack", False),
    ("split", "flux", "tensor", "module", False),
    ("split", "flux", "tensor", "module", True),
    ("split", "flux", "tensor", "stack", False),
    ("split", "qwen", "tensor", "module", False),
]
WORK = {"branches": _a_branch_each, "split": _split}
JOBS = [*BRANCHES, *SPLITS]


@pytest.mark.parametrize(
    ("name", "kind", "granularity", "cache_first"),
    [
        *_marked([job for job in SPLITS if job[2] == "context"], "context parallel"),
        *_marked([job for job in SPLITS if job[2] == "tensor"], "tensor parallel"),
    ],
)
def test_parallelism_of_diffusers(done, name, kind, granularity, cache_first):
    """Half of the tokens, or of every weight, on a rank; all decide as one process does."""
    case, ranks = BY_NAME[name], done["split", name, kind, granularity, cache_first]
    uncached = case.draw(case.model(), batch=1, steps=3, **_even(case))
    model = apply_foca_cache(case.model(), _config(granularity))
    expected = case.draw(model, batch=1, steps=STEPS, **_even(case))
    stats = foca_cache_stats(model)
    for theirs, image, schedule, skipped in ranks:
        torch.testing.assert_close(theirs, uncached, rtol=1e-4, atol=1e-4)
        assert schedule == stats["schedule"]
        assert skipped == stats["skipped_steps"] > 3
        torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(ranks[0][1], ranks[1][1])
