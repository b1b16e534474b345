"""Every part of the GPU suite, run on the CPU at tiny shapes with real models."""

import json
from importlib.util import find_spec

import pytest
import torch
from _measure import Budget, repeated
from recorded import recorded
from suite import models

from foca_dit import FullSteps, capture, foca_cache_stats
from foca_kernels import bytes_moved

COLUMNS = {
    "device", "case", "provider", "dtype", "shape", "ms", "gbs", "copy_gbs", "commit", "torch",
    "driver", "date",
}  # fmt: skip

# `make bench` installs cache-dit, `make test` does not.
PEERS = ("cache-dit TaylorSeer-1", "cache-dit FoCa") if find_spec("cache_dit") else ()


def rows_of(run):
    """All rows on disk; measured ones are complete."""
    rows = json.loads(run.results.path.read_text())
    for row in rows:
        if "ms" in row:
            assert set(row) >= COLUMNS, row
            assert row["ms"] > 0
    left_out = [row for row in rows if "left_out" in row]
    assert not left_out, left_out
    return rows


def test_ops_measures_every_operator_in_every_dtype(run, monkeypatch):
    from suite import ops

    from foca_kernels.registry import FUNCTIONS

    monkeypatch.setattr(ops, "TINY_SIZES", (10,))
    monkeypatch.setattr(ops, "compiled_too", lambda *_: False)
    monkeypatch.setattr(type(run), "release", lambda self: None)  # seconds, over all cases
    ops.ops_part(run)
    rows = rows_of(run)
    ours = {(r["case"], r["dtype"]) for r in rows if r["provider"] == "cpu-cpp" and r["gbs"]}
    cases = {case for case, _ in ours}
    # `.out`, `new tensor`: two forms of forecast; residual and commit_ more than once.
    assert len(cases) == len(FUNCTIONS) + 2, cases
    assert len(ours) == 3 * len(cases)
    latencies = {r["case"] for r in rows if r["case"].startswith("call of")}
    assert len(latencies) == len(cases)


def test_a_part_without_time_says_what_it_dropped(run):
    from suite.ops import ops_part

    run.budget = Budget(0)
    ops_part(run, quick=True)
    rows = json.loads(run.results.path.read_text())
    assert len(rows) == 12
    assert all("no time left" in row["left_out"] for row in rows)


def test_skip_measures_pieces_launches_and_a_replay(run, monkeypatch):
    from suite.skipped import PIECES, collapsed, whole_steps

    monkeypatch.setitem(capture.CAPTURES, "cpu", recorded)
    whole_steps(run, "dit-xl/2-256")
    collapsed(run, "dit-xl/2-256")
    rows = rows_of(run)
    for granularity in ("module", "stack", "output"):
        of = [r for r in rows if r["case"] == f"skipped step, {granularity}"]
        graphed = [] if granularity == "output" else ["foca, one graph"]
        assert [r["provider"] for r in of] == ["foca", *graphed]
        assert of[0]["launches"] > 0
        assert of[0]["source"] == "diffusers DiTTransformer2DModel"
        assert set(of[0]["pieces"]) == (set() if granularity == "output" else set(PIECES))
    assert next(r for r in rows if r["case"] == "timeline, module")["spans"]
    providers = {r["provider"] for r in rows if r.get("part") == "collapsed"}
    assert providers == {
        "copy", "cpu-cpp", "eager", "eager-in-place", "foreach", "cpu-cpp, 1 at a time",
    }  # fmt: skip


@pytest.mark.slow
def test_groups_compiled_together_are_the_collapsed_skip():
    from _cases_lists import by_group, residual_case

    case = residual_case(6, (1, 8, 16), "cpu", torch.float32, rivals=True)
    by_group(case, 4, "compile-in-place", "cpu")
    by_group(case, 1, "cpu-cpp", "cpu")
    results = {}
    for name, provider in case.providers.items():
        torch.manual_seed(4)
        inputs = case.inputs()
        returned = provider(inputs)()
        results[name] = inputs["x"] if returned is None else returned
    assert {"compile", "compile-in-place, 4 at a time", "cpu-cpp, 1 at a time"} <= set(results)
    for name, x in results.items():
        assert torch.allclose(x, results["cpu-cpp"], rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("name", ["dit-xl/2-256", "flux.1-dev", "wan2.1-14b"])
@pytest.mark.parametrize("granularity", ["module", "stack"])
@pytest.mark.parametrize("plain", [False, True], ids=["diffusers", "plain"])
def test_the_replayed_step_is_the_skipped_step(name, granularity, plain, monkeypatch):
    from suite.skipped import ANCHORS, stepper

    monkeypatch.setitem(capture.CAPTURES, "cpu", recorded)
    workload = models.build(name, "cpu", tiny=True, plain=plain)
    outputs = {}
    for graph in (True, False):
        with workload.cached(granularity, FullSteps(ANCHORS), cuda_graph=graph):
            step = stepper(workload)
            outputs[graph] = [step() for _ in range(len(ANCHORS) + 3)]
            assert foca_cache_stats(workload.model)["graph_replays"] == 3 * graph
    for replayed, run in zip(outputs[True], outputs[False], strict=True):
        assert torch.equal(replayed, run)


def test_a_refused_graph_is_left_out_with_its_reason(run, monkeypatch):
    from suite.skipped import whole_steps

    def failing(step, device):
        raise RuntimeError("no")

    monkeypatch.setitem(capture.CAPTURES, "cpu", failing)
    whole_steps(run, "dit-xl/2-256")
    rows = json.loads(run.results.path.read_text())
    reasons = [row["left_out"] for row in rows if "left_out" in row]
    assert reasons == ["the capture failed: RuntimeError: no"] * 2


LARGE = ("flux.1-dev", "hunyuan-video", "wan2.1-14b", "dit-xl/2-512")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
        for name in models.ARCHITECTURES
    ],
)
def test_plain_blocks_have_the_published_shapes(name):
    """Histories, bytes and work of the plain blocks, against the published model's own."""
    from foca_dit import FoCaCacheConfig
    from foca_dit.adapters.published import PUBLISHED
    from foca_dit.estimate import plan_foca_cache

    published = PUBLISHED[name]
    with torch.device("meta"):
        plain = models._plain(name, published.request, tiny=False, dtype=torch.bfloat16)
    inputs = {
        "hidden_states": plain.sample,
        "timestep": torch.empty(len(plain.sample), device="meta"),
        **plain.arguments,
    }
    config = FoCaCacheConfig(preset="paper")
    ours = plan_foca_cache(plain.model.to(torch.bfloat16), inputs, config)
    theirs = plan_foca_cache(published.build(), published.inputs(published.request), config)
    assert models.features(name) == theirs.chosen.features
    b, s, d = models.stream(name, published.request)
    assert theirs.chosen.nbytes == 3 * models.features(name) * b * s * d * 2
    for granularity in ("module", "stack"):
        mine, other = ours._account(granularity), theirs._account(granularity)
        assert (mine.features, mine.nbytes) == (other.features, other.nbytes)
        assert mine.full_flops == pytest.approx(other.full_flops, rel=0.02)


def test_the_bytes_of_a_generation_are_those_of_its_tensors(monkeypatch):
    """What `of_bytes` allows for, against the arguments of the operators that ran."""
    from suite.endtoend import moved

    import foca_dit.history as history

    counted = {"skip": 0, "commit": 0}
    workload = models.build("flux.1-dev", "cpu", tiny=True)
    skip, commit = torch.ops.foca.forecast_residual_, torch.ops.foca.commit_

    class Counting:
        def forecast_residual_(self, x, slots, weights, gates):
            counted["skip"] = bytes_moved.forecast_residual_(x, slots, weights, [])
            skip(x, slots, weights, gates)

        def commit_(self, feature, slots, transition, stats):
            counted["commit"] += bytes_moved.commit_(feature, slots, transition)
            commit(feature, slots, transition, stats)

    monkeypatch.setattr(history, "_ops", Counting())
    with workload.cached("module", FullSteps([0, 1, 2, 5])):
        for step in range(7):
            if step == 5:
                counted["commit"] = 0  # one commit after a gap: all columns are read
            workload.call(workload.sample, 1 - step / 10)
        stats = foca_cache_stats(workload.model)
    assert moved(stats["nbytes"], stats["features"]) == (counted["skip"], counted["commit"])


def test_commit_compares_statistics_with_separate_passes(run, monkeypatch):
    from suite import commits

    monkeypatch.setattr(commits, "STREAMS", ("dit-xl/2-256", "flux.1-dev"))
    commits.commit_part(run)
    rows = rows_of(run)
    providers = {r["provider"] for r in rows if r["case"] == "commit_ K=3 R=2"}
    assert {"cpu-cpp", "cpu-cpp + passes", "eager"} <= providers
    ways = {(r["provider"], r["granularity"]) for r in rows if "with commits" in r["case"]}
    assert {("without", "module"), ("in line", "module"), ("in line", "stack")} <= ways


def test_full_steps_only_commits_every_feature_and_skips_nothing():
    from suite.commits import full_steps_only

    workload = models.build("dit-xl/2-256", "cpu", tiny=True)
    for stats in (False, True):
        with full_steps_only(workload, "module", stats) as step:
            for _ in range(6):
                step()
            seen = foca_cache_stats(workload.model)
        assert seen["commits"] == 6 * seen["features"]
        assert (seen["skipped_steps"], seen["host_reads"] > 0) == (0, stats)


def test_separate_passes_give_the_same_statistics():
    from _cases import commit_case, kernels_of
    from suite.commits import plain_norms, separately

    case = commit_case(2, (1, 8, 16), "cpu", torch.float32)
    torch.manual_seed(3)
    fused = case.inputs()
    separate = {
        n: [t.clone() for t in v] if isinstance(v, list) else v.clone() for n, v in fused.items()
    }
    case.providers["cpu-cpp"](fused)()
    separately(kernels_of("commit_", "cpu")["cpu-cpp"], 2, plain_norms)(separate)()
    torch.testing.assert_close(fused["stats"], separate["stats"])
    assert all(
        torch.equal(a, b) for a, b in zip(fused["history"], separate["history"], strict=True)
    )


@pytest.mark.parametrize("kind", ["flux", "dit", "video"])
def test_end_to_end_compares_all_caches_at_the_same_full_steps(run, kind, monkeypatch):
    from suite import endtoend

    name, requests, intervals = endtoend.KINDS[kind]
    monkeypatch.setitem(endtoend.KINDS, kind, (name, requests[:1], intervals))
    endtoend.end_to_end(run, kind)
    rows = {r["provider"]: r for r in rows_of(run)}
    assert list(rows) == [
        "full", "foca stack", "foca module", "foca output", "diffusers TaylorSeer, all modules",
        "diffusers TaylorSeer", *PEERS,
    ]  # fmt: skip
    every = rows["full"]["products"]
    share = {name: row["products"] / every for name, row in rows.items()}
    full = rows["foca stack"]["full_steps"] / 10
    # Ours compute the blocks at full steps only; cache-dit its first block at all of them.
    assert share["foca stack"] == pytest.approx(full, abs=0.04)
    assert share["foca module"] == pytest.approx(full, abs=0.04)
    assert share["foca output"] == pytest.approx(full, abs=1e-9)
    assert all(full < share[peer] < 1 for peer in PEERS)
    # Its patterns match no module of DiT, so that it computes everything there.
    assert (share["diffusers TaylorSeer"] == 1) == (kind == "dit")
    assert share["diffusers TaylorSeer, all modules"] < share["diffusers TaylorSeer"]
    assert rows["foca module"]["of_bytes"] > 0
    assert all(row["ideal"] == 10 / row["full_steps"] for row in rows.values())


def test_without_diffusers_plain_blocks_stand_in_and_say_so(run, monkeypatch):
    from suite import endtoend

    monkeypatch.setattr(models, "has_diffusers", lambda: False)
    endtoend.end_to_end(run, "flux")
    rows = rows_of(run)
    assert [r["provider"] for r in rows] == ["full", "foca stack", "foca module", "foca output"]
    assert len({r["products"] / r["full_steps"] for r in rows}) == 1
    assert all(r["source"] == "plain PyTorch blocks of the same shapes" for r in rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["dit-xl/2-256", "flux.1-dev", "wan2.1-14b"])
@pytest.mark.parametrize("granularity", ["module", "stack"])
def test_a_cuda_graph_is_the_skipped_step(name, granularity):
    """Where there is no diffusers, too: tests/layer/test_graphs.py has the models themselves."""
    from suite.skipped import ANCHORS, stepper

    workload, outputs = models.build(name, "cuda", tiny=True, plain=True), {}
    for graph in (True, False):
        with workload.cached(granularity, FullSteps(ANCHORS), cuda_graph=graph):
            step = stepper(workload)
            outputs[graph] = [step() for _ in range(len(ANCHORS) + 3)]
            stats = foca_cache_stats(workload.model)
            assert stats["graph_replays"] == 3 * graph, stats["graph_refusals"]
    assert all(map(torch.equal, outputs[True], outputs[False]))


@pytest.mark.parametrize(
    ("calls", "seconds", "expected"),
    [(1, 6e-5, 8), (3, 2e-4, 9), (1, 1.5e-3, 2), (1, 3e-3, 1), (64, 1e-5, 64), (1, 0.0, 8)],
)
def test_short_timings_are_of_more_calls(calls, seconds, expected):
    assert len(repeated([int] * calls, seconds)) == expected


def test_a_video_is_as_long_as_time_allows():
    """Attention takes the most of a long one: twice the tokens are more than twice the time."""
    from suite.endtoend import VIDEO_FRAMES, frames_in

    request = models.Request(batch=1, height=720, width=1280, frames=17)
    chosen = [frames_in(left, "hunyuan-video", request, 0.9, 50) for left in (100, 200, 500, 9e3)]
    assert chosen == [17, 17, 33, 129]
    assert frames_in(4 * 50 * 0.9 * 9 / 5, "hunyuan-video", request, 0.9, 50) == 17
    assert set(chosen) < set(VIDEO_FRAMES)


def test_a_timeline_by_hand():
    from suite.timeline import summary

    seen = summary([(10.0, 14.0, "b"), (0.0, 4.0, "a"), (12.0, 18.0, "a"), (20.0, 21.0, "c")])
    assert seen["launches"] == 4
    assert (seen["span_us"], seen["busy_us"], seen["gaps_us"]) == (21.0, 13.0, 8.0)
    assert seen["by_name"][0] == ("a", 2, 10.0)
    assert seen["spans"][1] == (10.0, 4.0, "b")


@pytest.mark.slow
def test_the_suite_runs_where_only_torch_and_numpy_are():
    """As on a bare machine: no diffusers, cache-dit, Pillow, not installed itself."""
    import subprocess
    import sys
    from pathlib import Path

    root = Path(__file__).parents[2]
    absent = ("diffusers", "cache_dit", "transformers", "accelerate", "PIL", "tqdm", "safetensors")
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        f"sys.path.insert(0, {str(root / 'benchmarks')!r})\n"
        "sys.argv = ['gpu_suite.py', '--device', 'cpu', '--part', 'e2e-dit', '--part', 'skip']\n"
        "runpy.run_path(sys.path[0] + '/gpu_suite.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "plain PyTorch blocks of the same shapes" in done.stdout
    assert "left out" not in done.stdout
