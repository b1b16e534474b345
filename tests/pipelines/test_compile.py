"""torch.compile of the model or of its blocks, before and after the cache is applied."""

import pytest
import torch
from cases import BY_NAME
from lanes import PAPER, Lanes, assert_close
from torch._dynamo.utils import counters

from foca_dit import apply_foca_cache, foca_cache_stats

pytestmark = pytest.mark.no_cover  # lines that other tests run, and tracing adds a third


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _whole(model):
    model.compile(backend="aot_eager")  # in place, as diffusers recommends


def _blocks(model):
    for path in ("transformer_blocks", "single_transformer_blocks", "blocks"):
        for block in getattr(model, path, ()):
            block.compile(backend="aot_eager")  # what `compile_repeated_blocks` does


def _graphs():
    return counters["stats"]["unique_graphs"], sum(counters["recompiles"].values())


SHOWN = {_whole: "compile model", _blocks: "compile blocks"}


@pytest.mark.parametrize(
    "compiled",
    [pytest.param(how, marks=pytest.mark.supports(name), id=name) for how, name in SHOWN.items()],
)
@pytest.mark.parametrize(
    ("case", "cache_first"),
    [
        pytest.param(BY_NAME["dit"], True, id="dit-cache-first"),
        pytest.param(BY_NAME["flux"], True, id="flux-cache-first"),
        pytest.param(BY_NAME["wan"], True, id="wan-cache-first"),
        pytest.param(
            BY_NAME["dit"], False, id="dit-after", marks=pytest.mark.supports("compile first")
        ),
        pytest.param(BY_NAME["flux"], False, id="flux-after", marks=pytest.mark.slow),
        pytest.param(
            BY_NAME["wan"], False, id="wan-after", marks=pytest.mark.supports("compile first")
        ),
    ],
)
def test_equals_the_recursion_and_compiles_once(case, compiled, cache_first):
    """Nothing is compiled any more after the first generation, at any step of any other."""
    literal, model = case.model(), case.model()
    reference = Lanes(literal, case.wrapped, [*["one"] * 8, *["two"] * 8])
    if cache_first:
        apply_foca_cache(model, PAPER)
    compiled(model)
    if not cache_first:
        case.draw(model, steps=8)  # compiled without the cache, and run
        apply_foca_cache(model, PAPER)
    assert_close(case.draw(model, steps=8), case.draw(literal, steps=8))
    first = _graphs()
    assert first[0] > 0
    assert_close(case.draw(model, seed=1, steps=8), case.draw(literal, seed=1, steps=8))
    assert _graphs() == first
    assert foca_cache_stats(model)["collapsed_skips"] == reference.skipped
