"""Skipped steps replayed from a graph: recorded operators on a CPU, CUDA graphs on a GPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import BY_NAME, CASES, WIDTH
from recorded import recorded

from foca_dit import (
    CacheState,
    FoCaCacheConfig,
    FullSteps,
    apply_foca_cache,
    cache_scope,
    foca_cache_stats,
    graphs,
    remove_foca_cache,
)
from foca_dit.schemes import FoCa

FULL = FullSteps([0, 1, 4, 8])
STEPS = 12
DIT = BY_NAME["dit"]
# These read values of their masks on the host, which no graph can hold.
CAPTURE_FAILED = "the capture failed: operation not permitted when stream is capturing"
READ_ON_THE_HOST = ("hunyuan-video-framepack", "hunyuan-video-1.5")


@pytest.fixture(autouse=True)
def _recording(monkeypatch):
    monkeypatch.setitem(graphs.CAPTURES, "cpu", recorded)


def config(granularity="module", **more):
    return FoCaCacheConfig(
        preset="paper", schedule=FULL, granularity=granularity, cuda_graph=True, **more
    )


def drawn(case, how, **more):
    model = apply_foca_cache(case.model(), how)
    return case.draw(model, steps=STEPS, **more), foca_cache_stats(model)


def eager(case, granularity="module", **more):
    how = FoCaCacheConfig(preset="paper", schedule=FULL, granularity=granularity)
    return drawn(case, how, **more)[0]


@pytest.mark.parametrize("granularity", ["module", "stack"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_replays_are_the_skipped_steps(case, granularity):
    output, stats = drawn(case, config(granularity))
    refused = case.name in READ_ON_THE_HOST
    assert stats["skipped_steps"] == STEPS - 4
    assert stats["graph_replays"] == (0 if refused else STEPS - 4)
    assert stats["graph_refusals"] == ({CAPTURE_FAILED: STEPS - 4} if refused else {})
    assert torch.equal(output, eager(case, granularity))


def test_an_output_has_nothing_to_capture():
    output, stats = drawn(DIT, config("output"))
    assert (stats["graph_replays"], stats["graph_refusals"]) == (0, {})
    assert torch.equal(output, eager(DIT, "output"))


def test_generations_are_captured_anew_whatever_changed_in_between():
    model = apply_foca_cache(DIT.model(), config())
    first = DIT.draw(model, steps=STEPS, batch=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    again = DIT.draw(model, steps=STEPS, batch=3)
    assert foca_cache_stats(model)["graph_replays"] == 2 * (STEPS - 4)
    remove_foca_cache(model)
    apply_foca_cache(model, FoCaCacheConfig(preset="paper", schedule=FULL))
    assert torch.equal(again, DIT.draw(model, steps=STEPS, batch=3))
    assert not torch.equal(first, DIT.draw(model, steps=STEPS, batch=2))


def test_an_argument_of_another_kind_is_not_replayed():
    model, plain = (
        apply_foca_cache(DIT.model(), how)
        for how in (config(), FoCaCacheConfig(preset="paper", schedule=FULL))
    )
    x, labels = torch.randn(2, *DIT.shape), torch.tensor([1, 2])
    with torch.no_grad():
        for step in range(8):
            time = torch.full((2,), 900.0 - 100 * step)
            form = step == 6
            found, wanted = (
                m(x, timestep=time, class_labels=labels, return_dict=form) for m in (model, plain)
            )
            assert isinstance(found, tuple) != form
            assert torch.equal(found[0], wanted[0])
    stats = foca_cache_stats(model)
    assert stats["graph_replays"] == 4 - 0 if stats["skipped_steps"] == 5 else 0
    assert stats["graph_refusals"] == {graphs.CHANGED: 1}


def test_outputs_stay_as_they_were_returned():
    model = apply_foca_cache(DIT.model(), config())
    x, labels = torch.randn(2, *DIT.shape), torch.tensor([1, 2])
    with torch.no_grad():
        outputs = [
            model(x, timestep=torch.full((2,), 900.0 - 100 * i), class_labels=labels).sample
            for i in range(4)
        ]
    assert foca_cache_stats(model)["graph_replays"] == 2
    assert not torch.equal(outputs[2], outputs[3])


def test_requests_have_graphs_of_their_own():
    model = apply_foca_cache(DIT.model(), config())
    states = [CacheState(config()) for _ in range(2)]
    x = [torch.randn(2, *DIT.shape, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    labels, outputs = torch.tensor([1, 2]), ([], [])
    with torch.no_grad():
        for step in range(7):
            time = torch.full((2,), 900.0 - 100 * step)
            for state, sample, into in zip(states, x, outputs, strict=True):
                with cache_scope(model, state):
                    into.append(model(sample, timestep=time, class_labels=labels).sample)
        alone = CacheState(config())
        with cache_scope(model, alone):
            for step in range(7):
                time = torch.full((2,), 900.0 - 100 * step)
                last = model(x[0], timestep=time, class_labels=labels).sample
    assert torch.equal(outputs[0][-1], last)
    assert not torch.equal(outputs[1][-1], last)
    assert [state.stats.graph_replays for state in states] == [4, 4]


def _offloaded(model):
    model.pos_embed._hf_hook = object()


def _on_another_device(model):
    elsewhere = torch.nn.Parameter(torch.empty(1, device="meta"), requires_grad=False)
    model.transformer_blocks[0].register_parameter("elsewhere", elsewhere)


@pytest.mark.parametrize("how", [_offloaded, _on_another_device])
def test_weights_that_move_are_refused(how):
    model = DIT.model()
    how(model)
    output = DIT.draw(apply_foca_cache(model, config()), steps=STEPS)
    stats = foca_cache_stats(model)
    assert (stats["graph_replays"], stats["graph_refusals"]) == (0, {graphs.OFFLOADED: STEPS - 4})
    assert torch.equal(output, eager(DIT))


def test_where_there_are_no_graphs_steps_run_as_ever(monkeypatch):
    monkeypatch.delitem(graphs.CAPTURES, "cpu")
    output, stats = drawn(DIT, config())
    nowhere = "the model runs on cpu: graphs are captured on cuda"
    assert stats["graph_refusals"] == {nowhere: STEPS - 4}
    assert torch.equal(output, eager(DIT))


@pytest.mark.parametrize("first", [0, 7])
def test_factors_of_a_scheme_are_refused(monkeypatch, first):
    """From the first skipped step on, or once they set in."""

    def factor(self, feature, anchors, step, device):
        return torch.full((1, DIT.tokens, WIDTH), 1.0 + step / 100) if step >= first else None

    monkeypatch.setattr(FoCa, "factor", factor)
    output, stats = drawn(DIT, config())
    if first:  # skipped: 2, 3, 5, 6, then 7, 9, 10, 11
        assert (stats["graph_replays"], stats["graph_refusals"]) == (4, {graphs.CHANGED: 4})
    else:
        assert stats["graph_refusals"] == {graphs.FACTORED: STEPS - 4}
    assert torch.equal(output, eager(DIT))


def test_one_generation_may_change_between_inference_mode_and_no_grad():
    models = [
        apply_foca_cache(DIT.model(), how)
        for how in (config(), replace(config(), cuda_graph=False))
    ]
    x, labels = torch.randn(2, *DIT.shape), torch.tensor([1, 2])
    for step in range(7):
        mode = torch.no_grad() if step % 2 else torch.inference_mode()
        with mode:
            time = torch.full((2,), 900.0 - 100 * step)
            found, wanted = (m(x, timestep=time, class_labels=labels).sample for m in models)
        assert torch.equal(found, wanted)
    assert foca_cache_stats(models[0])["graph_replays"] == 4


def test_arrays_among_the_arguments_are_not_compared():
    assert not graphs._alike(np.ones(2), np.ones(2))
    same = np.ones(2)
    assert graphs._alike(same, same)


def test_autocast_is_refused():
    with torch.autocast("cpu", torch.bfloat16):
        _, stats = drawn(DIT, config())
    assert stats["graph_refusals"] == {graphs.AUTOCAST: STEPS - 4}


def test_the_flag_is_a_flag():
    with pytest.raises(ValueError, match=r"'cuda_graph': expected one of False, True, got 2"):
        FoCaCacheConfig(cuda_graph=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("granularity", ["module", "stack"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cuda_graphs_are_the_skipped_steps(case, granularity):
    how = FoCaCacheConfig(preset="paper", schedule=FULL, granularity=granularity)
    outputs = {}
    for graphed in (True, False):
        model = apply_foca_cache(case.model().cuda(), config(granularity) if graphed else how)
        outputs[graphed] = case.draw(model, steps=STEPS)
        stats = foca_cache_stats(model)
        replayed = graphed and case.name not in READ_ON_THE_HOST
        assert stats["graph_replays"] == (STEPS - 4 if replayed else 0), stats["graph_refusals"]
    assert torch.equal(outputs[True], outputs[False])
