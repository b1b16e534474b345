"""Gates of the skipped steps up to the next full one, computed at the first of them (DiT)."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from models import tiny_dit

from foca_dit import CacheState, FoCaCacheConfig, FullSteps, apply_foca_cache, cache_scope
from foca_dit.ahead import MOST, Ahead

FULL = (0, 1, 2, 6)  # so 3, 4, 5 are skipped, and 7 to 9
STEPS = 10
CONFIG = FoCaCacheConfig(
    schedule=FullSteps(FULL), granularity="module", history_dtype=torch.float32
)


def _loop(ahead, dtype=torch.float32, edit=lambda model, labels, step: labels, **on):
    """Samples with a cache that knows the scheduler, or not: outputs, and embeddings per step."""
    model, scheduler = tiny_dit(), FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = SimpleNamespace(transformer=model, scheduler=scheduler)
    apply_foca_cache(pipeline if ahead else model, CONFIG)
    embedded: list[int] = []
    embedder = model.transformer_blocks[1].norm1.emb.timestep_embedder
    embedder.register_forward_pre_hook(lambda _, given: embedded.append(len(given[0])))
    scheduler.set_timesteps(STEPS)
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, outputs, counts = torch.tensor([1, 2, 2, 10]), [], []
    with torch.no_grad(), cache_scope(model, state := CacheState(CONFIG)):
        for step, t in enumerate(scheduler.timesteps):
            labels = edit(model, labels, step)
            output = model(x, timestep=t.to(dtype).expand(4), class_labels=labels).sample
            x = scheduler.step(output, t, x).prev_sample
            outputs.append(output)
            counts.append(embedded.copy())
            embedded.clear()
    return state, outputs, counts


def _compare(**how):
    _, outputs, counts = _loop(True, **how)
    _, expected, _ = _loop(False, **how)
    for step, pair in enumerate(zip(outputs, expected, strict=True)):
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4, msg=f"step {step}")
    return counts


def test_gates_of_an_interval_are_computed_once():
    counts = _compare()
    assert counts == [[4], [4], [4], [3], [], [], [4], [3], [], []]
    _, _, alone = _loop(False)
    assert alone == [[4], [4], [4], [1], [1], [1], [4], [1], [1], [1]]


def test_other_labels_have_other_gates():
    """In a new tensor, and written to the one that is there."""

    def edit(model, labels, step):
        if step == 4:
            return labels.flip(0)
        return labels.fill_(7) if step == 8 else labels

    counts = _compare(edit=edit)
    assert counts == [[4], [4], [4], [3], [2], [], [4], [3], [2], []]


def test_a_rounded_timestep_has_gates_of_its_own():
    """Not those of the scheduler's."""
    _, _, counts = _loop(True, dtype=torch.bfloat16)
    assert counts[3:6] == [[1], [1], [1]]


def test_gates_in_training_mode_drop_labels_anew():
    def train(model, labels, step):
        model.train(step >= 3)
        return labels

    torch.manual_seed(0)
    _, _, counts = _loop(True, edit=train)
    assert counts[3:6] == [[1], [1], [1]]


def test_what_is_kept_is_counted_and_given_back():
    state, _, _ = _loop(True)
    histories = sum(branch.histories.nbytes for branch in state.branches.values())
    gates = 3 * 6 * 4 * 32 * 4  # steps, features, samples, width, bytes
    assert state.nbytes == histories + gates
    state.reset()
    assert state.nbytes == 0


def _double(timesteps):
    return [[torch.tensor([2 * t])] for t in timesteps]


def test_values_are_computed_for_the_steps_that_come():
    asked, ahead = [], Ahead()

    def compute(timesteps):
        asked.append(timesteps)
        return _double(timesteps)

    for timesteps in ((9.0, 8.0, 8.0, 7.0), (8.0, 7.0), (7.0,)):
        (value,) = ahead.values("gates", [], timesteps, compute)
        assert value == 2 * timesteps[0]
    assert asked == [(9.0, 8.0, 7.0)]
    assert ahead.nbytes == 12
    ahead.forget()
    assert ahead.nbytes == 0
    # The last step before a full one has none to share with.
    assert ahead.values("gates", [], (7.0,), compute) is None


def test_no_more_steps_at_once_than_are_worth_their_memory():
    ahead = Ahead()
    ahead.values("gates", [], range(100), _double)
    assert ahead.nbytes == 8 * MOST


@pytest.mark.parametrize("write", [False, True])
def test_on_a_device_writes_are_seen_without_reading(write):
    given, asked = torch.empty(3, device="meta"), []

    def compute(timesteps):
        asked.append(timesteps)
        return _double(timesteps)

    ahead, timesteps = Ahead(), (2.0, 1.0)
    ahead.values("gates", [given], timesteps, compute)
    if write:
        given.zero_()
    ahead.values("gates", [given], timesteps, compute)
    assert len(asked) == 1 + write
    ahead.values("gates", [torch.empty(3, device="meta")], timesteps, compute)
    assert len(asked) == 2 + write
    with torch.inference_mode():
        unseen = torch.empty(3, device="meta")
    assert ahead.values("gates", [unseen], timesteps, compute) is None
