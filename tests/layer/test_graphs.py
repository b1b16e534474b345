"""Skipped steps replayed from a graph: recorded operators on a CPU, CUDA graphs on a GPU."""

import threading
import time
import types
from dataclasses import replace

import pytest
import torch
from cases import BY_NAME, CASES, WIDTH
from diffusers import DiTTransformer2DModel
from recorded import recorded
from torch.utils._pytree import tree_flatten, tree_unflatten

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
from foca_dit.adapters.hooks import find_hook
from foca_dit.capture import CAPTURES, NotCapturable, watched
from foca_dit.schemes import FoCa
from foca_dit.stats import CacheStats

FULL = FullSteps([0, 1, 4, 8])
STEPS = 12
DIT = BY_NAME["dit"]
READS = "the step reads values on the host (aten.{})"
NOT_CAPTURABLE = {
    "glm-image": READS.format("index.Tensor"),
    "hunyuan-video-framepack": READS.format("_local_scalar_dense.default"),
    "hunyuan-video-1.5": READS.format("_local_scalar_dense.default"),
    "qwen-edit": "the step copies numbers to the device (tensor)",
}


@pytest.fixture(autouse=True)
def _recording(monkeypatch):
    monkeypatch.setitem(CAPTURES, "cpu", recorded)


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
    refused = NOT_CAPTURABLE.get(case.name)
    assert stats["skipped_steps"] == STEPS - 4
    assert stats["graph_replays"] == (0 if refused else STEPS - 4)
    assert stats["graph_refusals"] == ({refused: STEPS - 4} if refused else {})
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


def test_a_call_of_another_kind_ends_the_replays():
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
    stats = foca_cache_stats(model)  # skipped: 2, 3, 5, 6, 7
    assert (stats["graph_replays"], stats["graph_refusals"]) == (3, {graphs.CHANGED: 2})


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


def test_another_thread_replays_only_once_an_output_is_copied(monkeypatch):
    """Graphs of one pool may fill the same memory, and a replay lets other threads run."""
    shared = {}

    def in_shared_memory(run, device):
        replay, output = recorded(run, device)
        leaves, spec = tree_flatten(output)
        memory = [shared.setdefault(leaf.shape, torch.empty_like(leaf)) for leaf in leaves]

        def replay_and_wait():
            replay()
            for place, leaf in zip(memory, leaves, strict=True):
                place.copy_(leaf)
            time.sleep(0.02)

        return replay_and_wait, tree_unflatten(memory, spec)

    monkeypatch.setitem(CAPTURES, "cpu", in_shared_memory)
    model = apply_foca_cache(DIT.model(), config())
    step_begins, outputs = threading.Barrier(2), [None, None]
    x = [torch.randn(2, *DIT.shape, generator=torch.Generator().manual_seed(i)) for i in range(2)]

    @torch.no_grad()
    def draw(number):
        for step in range(4):
            step_begins.wait(60)
            now, labels = torch.full((2,), 900.0 - 100 * step), torch.tensor([1, 2])
            outputs[number] = model(x[number], timestep=now, class_labels=labels).sample

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert foca_cache_stats(model)["graph_replays"] == 4
    together = list(outputs)
    for number in range(2):
        step_begins = threading.Barrier(1)
        model = apply_foca_cache(DIT.model(), config())
        draw(number)
        assert torch.equal(together[number], outputs[number])


def _offloaded(model):
    model.pos_embed._hf_hook = object()


def _cast_layer_by_layer(model):
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


def _partly_elsewhere(model):
    elsewhere = torch.nn.Parameter(torch.empty(1, device="meta"), requires_grad=False)
    model.transformer_blocks[0].register_parameter("elsewhere", elsewhere)


def _replacing(model):
    model.pos_embed.proj.register_forward_pre_hook(
        lambda proj, args: setattr(proj, "weight", torch.nn.Parameter(proj.weight.clone()))
    )


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (_offloaded, graphs.HOOKED),
        (_cast_layer_by_layer, graphs.HOOKED),
        (_partly_elsewhere, graphs.ELSEWHERE),
        (_replacing, graphs.REPLACED),
    ],
)
def test_weights_that_move_are_refused(how, why):
    outputs = []
    for graphed in (True, False):
        model = DIT.model()
        how(model)
        apply_foca_cache(model, replace(config(), cuda_graph=graphed))
        outputs.append(DIT.draw(model, steps=STEPS, dtype=torch.float32))
        stats = foca_cache_stats(model)
        assert stats["graph_replays"] == 0
        assert stats["graph_refusals"] == ({why: STEPS - 4} if graphed else {})
    assert torch.equal(*outputs)


def test_objects_among_the_arguments_are_refused():
    output, stats = drawn(DIT, config(), cross_attention_kwargs={"own": object()})
    assert stats["graph_refusals"] == {
        "argument 'cross_attention_kwargs' holds an instance of object": 8
    }
    assert torch.equal(output, eager(DIT, cross_attention_kwargs={"own": object()}))


def test_a_tensor_elsewhere_among_the_arguments_is_refused():
    own = {"own": torch.empty(1, device="meta")}
    reasons = [
        *graphs._obstacles(DIT.model(), {"kwargs": own}, _Histories()),
        *graphs._obstacles(DIT.model(), {"kwargs": {"own": torch.empty(1)}}, _Histories()),
    ]
    assert reasons == ["argument 'kwargs' is on meta, the features on cpu"]


class _Histories:
    device, factored = torch.device("cpu"), False


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda x: x[x > 0], "reads values"),
        (lambda x: x.masked_select(x > 0), "reads values"),
        (lambda x: x.index_put_((x > 0,), x[1:]), "reads values"),
        (lambda x: x.long().bincount(), "reads values"),
        (lambda x: x * x.sum().item(), "reads values"),
        (lambda x: x if x.any() else -x, "reads values"),
        (lambda x: x.repeat_interleave(x.long().abs()), "reads values"),
        (lambda x: x + torch.tensor([1.0], device=x.device), "copies numbers"),
        (lambda x: x.to("meta"), "copies to or from"),
        (lambda x: torch.empty(4, device="meta").copy_(x), "copies to or from"),
    ],
)
def test_the_watch_sees_what_a_graph_cannot_hold(step, why):
    with pytest.raises(NotCapturable, match=why):
        watched(lambda: step(torch.arange(4.0)), torch.device("cpu"))


def test_the_watch_lets_the_rest_through():
    def step():
        x = torch.arange(4.0)
        x[0] = 7
        return torch.where(x > 1, x, 0.5)[torch.arange(2)].to(torch.bfloat16)

    assert watched(step, torch.device("cpu")).tolist() == [7, 0.5]


def test_arguments_without_names_are_refused():
    class Unnamed(DiTTransformer2DModel):
        def forward(self, hidden_states, *rest, timestep=None, class_labels=None, **more):
            return super().forward(
                hidden_states, *rest, timestep=timestep, class_labels=class_labels, **more
            )

    model = DIT.model()
    model.__class__ = Unnamed
    output = DIT.draw(apply_foca_cache(model, config()), steps=STEPS)
    reason = "the model's forward takes arguments without names"
    assert foca_cache_stats(model)["graph_refusals"] == {reason: STEPS - 4}
    assert torch.equal(output, eager(DIT))


def test_outputs_that_cannot_be_copied_are_refused():
    def step(arguments):
        return types.SimpleNamespace(sample=torch.ones(1))

    stats = CacheStats()
    model = apply_foca_cache(DIT.model(), config())
    DIT.draw(model, steps=STEPS)
    histories = next(iter(find_hook(model).state.branches.values())).histories
    graphs.SkippedSteps().run(step, DIT.model(), {}, histories, stats)
    assert stats.graph_refusals == {"the model returns a SimpleNamespace": 1}


def test_a_step_that_fails_fails_as_it_would_without():
    def step(arguments):
        raise KeyError("own")

    model = apply_foca_cache(DIT.model(), config())
    DIT.draw(model, steps=STEPS)
    histories = next(iter(find_hook(model).state.branches.values())).histories
    with pytest.raises(KeyError, match="own"):
        graphs.SkippedSteps().run(step, DIT.model(), {}, histories, stats := CacheStats())
    assert stats.graph_refusals == {"the capture failed: KeyError: 'own'": 1}


def test_in_a_compiled_model_graphs_are_captured_of_what_was_written():
    model = apply_foca_cache(DIT.model(), config())
    compiled = torch.compile(model, backend="eager")
    x, labels = torch.randn(2, *DIT.shape), torch.tensor([1, 2])
    plain = apply_foca_cache(DIT.model(), replace(config(), cuda_graph=False))
    with torch.no_grad():
        for step in range(7):
            time = torch.full((2,), 900.0 - 100 * step)
            found, wanted = (m(x, timestep=time, class_labels=labels)[0] for m in (compiled, plain))
            torch.testing.assert_close(found, wanted)
    assert foca_cache_stats(model)["graph_replays"] == 4


def test_where_there_are_no_graphs_steps_run_as_ever(monkeypatch):
    monkeypatch.delitem(CAPTURES, "cpu")
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
        outputs[graphed] = case.draw(model, steps=STEPS, device="cuda")
        stats = foca_cache_stats(model)
        replayed = graphed and case.name not in NOT_CAPTURABLE
        assert stats["graph_replays"] == (STEPS - 4 if replayed else 0), stats["graph_refusals"]
    assert torch.equal(outputs[True], outputs[False])
