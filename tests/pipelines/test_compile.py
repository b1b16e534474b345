"""torch.compile of the model or of its blocks, before and after the cache is applied."""

import pytest
import torch
from lanes import DIT, FLUX, PAPER, Lanes, assert_close
from models import draw, draw_flux, tiny_dit, tiny_flux
from torch._dynamo.utils import counters

from foca_dit import apply_foca_cache, foca_cache_stats

MODELS = {"dit": (tiny_dit, draw, DIT), "flux": (tiny_flux, draw_flux, FLUX)}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _whole(model):
    model.compile(backend="aot_eager")  # in place, as diffusers recommends


def _blocks(model):
    for path in ("transformer_blocks", "single_transformer_blocks"):
        for block in getattr(model, path, ()):
            block.compile(backend="aot_eager")  # what `compile_repeated_blocks` does


def _graphs():
    return counters["stats"]["unique_graphs"], sum(counters["recompiles"].values())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("compiled", [_whole, _blocks], ids=["model", "blocks"])
@pytest.mark.parametrize(
    "cache_first",
    [
        pytest.param(True, id="cache-first"),
        pytest.param(False, id="compile-first", marks=pytest.mark.slow),
    ],
)
def test_equals_the_recursion_and_compiles_once(name, compiled, cache_first):
    """Nothing is compiled any more after the first generation, at any step of any other."""
    build, run, wrapped = MODELS[name]
    literal, model = build(), build()
    reference = Lanes(literal, wrapped, [*["one"] * 12, *["two"] * 12])
    if cache_first:
        apply_foca_cache(model, PAPER)
    compiled(model)
    if not cache_first:
        run(model)  # compiled without the cache, and run
        apply_foca_cache(model, PAPER)
    assert_close(run(model), run(literal))
    first = _graphs()
    assert first[0] > 0
    assert_close(run(model, seed=1), run(literal, seed=1))
    assert _graphs() == first
    assert foca_cache_stats(model)["collapsed_skips"] == reference.skipped
