"""A transformer of one's own, in plain PyTorch: served by a table, without diffusers."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from literal import wrap

from foca_dit import (
    FoCaCacheConfig,
    apply_foca_cache,
    foca_cache_stats,
    register_adapter,
    remove_foca_cache,
)
from foca_dit.adapters import registry
from foca_dit.adapters.models import find_spec
from foca_dit.adapters.spec import BlockGroup, Feature, LinearGates, ModelSpec, SharedGates

EXAMPLE = Path(__file__).parents[2] / "examples/plain_dit"
sys.path.insert(0, str(EXAMPLE))
from cached_sampling import draw  # noqa: E402
from plain_dit import Block, PlainDiT  # noqa: E402

FULL_STEPS = (0, 1, 2, 6, 10, 14, 18)
CONFIG = FoCaCacheConfig(preset="paper", cache_interval=4, history_dtype=torch.float32)


def tiny():
    torch.manual_seed(0)
    return PlainDiT().eval()


def test_the_example_runs_and_never_imports_diffusers():
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(EXAMPLE)!r})\n"
        f"runpy.run_path({str(EXAMPLE / 'cached_sampling.py')!r}, run_name='__main__')\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'diffusers']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "6 full steps, 14 skipped in one launch each" in done.stdout


def test_fused_skip_equals_the_recursion_around_every_module():
    literal = tiny()
    assert wrap(literal, {"blocks": ("attention", "mlp")}, FULL_STEPS) == 6
    model = apply_foca_cache(tiny(), CONFIG)
    actual = draw(model)
    assert foca_cache_stats(model)["collapsed_skips"] == 20 - len(FULL_STEPS)
    torch.testing.assert_close(actual, draw(literal), rtol=5e-6, atol=5e-6)
    assert (actual - draw(tiny())).abs().max() > 1e-3


@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
def test_removal_leaves_the_model_as_it_was(granularity):
    model = tiny()
    expected, before = draw(model), _attributes(model)
    apply_foca_cache(model, FoCaCacheConfig(preset="paper", granularity=granularity))
    assert not torch.equal(draw(model), expected)
    with pytest.raises(ValueError, match="already has a cache"):
        apply_foca_cache(model)
    remove_foca_cache(model)
    assert torch.equal(draw(model), expected)
    assert _attributes(model) == before


def _attributes(model):
    return {(name, key) for name, module in model.named_modules() for key in vars(module)}


class Prediction(NamedTuple):
    sample: torch.Tensor


@pytest.mark.parametrize("wrap_output", [lambda x: x, lambda x: (x,), lambda x: [x], Prediction])
def test_a_forecast_is_wrapped_as_the_model_wraps_its_output(wrap_output):
    class Wrapping(PlainDiT):
        def forward(self, x, t):
            return wrap_output(super().forward(x, t))

    register_adapter(Wrapping, ModelSpec(sample="x", timestep="t"))
    model = apply_foca_cache(Wrapping().eval(), FoCaCacheConfig(cache_interval=5))
    x = torch.randn(1, 16, 4)
    with torch.no_grad():
        outputs = [model(x, t=torch.tensor([900.0 - i])) for i in range(5)]
    assert foca_cache_stats(model)["skipped_steps"] == 2
    for output in outputs:
        assert type(output) is type(outputs[0])
        assert (output if isinstance(output, torch.Tensor) else output[0]).shape == x.shape


def test_a_forward_of_the_instances_own_is_given_back():
    model, calls = tiny(), []
    run = model.blocks[1].forward

    def own(*args, **kwargs):
        calls.append(1)
        return run(*args, **kwargs)

    model.blocks[1].forward = own
    apply_foca_cache(model, CONFIG)
    draw(model)
    assert len(calls) == len(FULL_STEPS)
    remove_foca_cache(model)
    assert model.blocks[1].forward is own


def test_derived_classes_are_served_and_a_second_table_replaces_the_first():
    class Derived(PlainDiT):
        pass

    assert find_spec(Derived()) is find_spec(tiny())
    register_adapter(Derived, ModelSpec(sample="x", timestep="t"))
    assert find_spec(Derived()).granularities == ("output",)
    assert find_spec(tiny()).granularities == ("module", "stack", "output")


def _spec(**changes):
    group = {
        "path": "blocks",
        "hidden": "x",
        "returns": ("x",),
        "features": (Feature("attention", 2, "modulation"),),
        "gates": LinearGates("condition"),
    }
    named = {name: changes.pop(name, own) for name, own in (("sample", "x"), ("timestep", "t"))}
    return ModelSpec(groups=(BlockGroup(**(group | changes)),), **named)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": (Feature("attn", 2, "modulation"),)}, "module 'attn'.*no block has it"),
        ({"features": (Feature("mlp", 2, "linear"),)}, "module 'linear'.*no block has it"),
        ({"path": "layers"}, "'layers'.*no such list"),
        ({"hidden": "hidden_states"}, "argument 'hidden_states'.*does not take it"),
        ({"returns": ("x", "text")}, "argument 'text'.*does not take it"),
        ({"gates": LinearGates("temb")}, "argument 'temb'.*does not take it"),
        ({"features": (Feature("mlp", 2),)}, "'mlp' a chunk.*names no modulation"),
        ({"gates": SharedGates(module="mod")}, "modulation 'mod'.*no such module"),
        (
            {"gates": SharedGates("condition", table="rows")},
            "table 'rows'.*no block has such a parameter",
        ),
        ({"sample": "latent"}, "argument 'latent'.*forward does not take it"),
        ({"timestep": "sigma"}, "argument 'sigma'.*forward does not take it"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_at_once(changes, said):
    class Odd(PlainDiT):
        pass

    register_adapter(Odd, _spec(**changes))
    model = Odd()
    before = _attributes(model)
    with pytest.raises(ValueError, match=said):
        apply_foca_cache(model, FoCaCacheConfig(granularity="module"))
    assert _attributes(model) == before


@pytest.mark.parametrize("partly", [False, True])
@pytest.mark.parametrize("granularity", ["module", "stack", "output"])
def test_blocks_that_write_to_the_stream_they_are_given(granularity, partly):
    class InPlace(Block):
        def forward(self, x, condition):
            after = super().forward(x, condition)
            return x.copy_((x + after) / 2) + (after - x) if partly else x.copy_(after)

    def build(block):
        model = tiny()
        for each in model.blocks:
            each.__class__ = block
        return model

    config = FoCaCacheConfig(cache_interval=4, granularity=granularity)
    model = build(InPlace)
    expected = draw(apply_foca_cache(tiny(), config))
    torch.testing.assert_close(draw(apply_foca_cache(model, config)), expected)


@pytest.mark.parametrize("what", ["block", "cached module"])
def test_what_stands_in_two_places_is_refused_and_nothing_stays(what):
    model = tiny()
    if what == "block":
        model.blocks[2] = model.blocks[0]
    else:
        model.blocks[2].mlp = model.blocks[0].mlp
    before = _attributes(model)
    with pytest.raises(ValueError, match=f"every {what} in one place"):
        apply_foca_cache(model, CONFIG)
    assert _attributes(model) == before
    apply_foca_cache(model, FoCaCacheConfig(granularity="output"))


def test_hooks_that_cannot_all_be_registered_are_taken_off_again(monkeypatch):
    model, put = tiny(), registry._register_plainly

    def failing(module, hook):
        if module is model.blocks[1]:
            raise RuntimeError("no more hooks")
        put(module, hook)

    before = _attributes(model)
    monkeypatch.setattr(registry, "_register_plainly", failing)
    with pytest.raises(RuntimeError, match="no more hooks"):
        apply_foca_cache(model, CONFIG)
    assert _attributes(model) == before


@pytest.mark.parametrize("granularity", ["module", "stack"])
def test_blocks_compiled_before_the_cache_is_applied(granularity):
    config = FoCaCacheConfig(cache_interval=4, granularity=granularity)
    model, expected = tiny(), draw(apply_foca_cache(tiny(), config))
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend="eager")
    draw(model)
    assert torch.equal(draw(apply_foca_cache(model, config)), expected)
    assert foca_cache_stats(model)["skipped_steps"] > 0


def test_a_shared_modulation_that_is_wrapped_later():
    """As LoRA does: gates then come from the wrapper, whenever it was put there."""

    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 3 * self.inner(x)

    class Sharing(PlainDiT):
        def __init__(self):
            super().__init__()
            self.modulate = torch.nn.Linear(32, 6 * 32)
            for block in self.blocks:
                block.modulation = torch.nn.Identity()

        def forward(self, x, t):
            rows = self.modulate(t[:, None].expand(-1, 32) / 1000)
            stream = self.embed(x)
            for block in self.blocks:
                stream = block(stream, rows)
            return self.head(stream)

    class Given(Block):
        def forward(self, x, condition):
            gate1, gate2 = condition[:, None].chunk(6, dim=-1)[2::3]
            x = x + gate1 * self.attention(self.norm(x))
            return x + gate2 * self.mlp(self.norm(x))

    def build():
        torch.manual_seed(0)
        model = Sharing().eval()
        for block in model.blocks:
            block.__class__ = Given
        return model

    features = (Feature("attention", 2), Feature("mlp", 5))
    register_adapter(Sharing, _spec(features=features, gates=SharedGates(module="modulate")))
    early, late = build(), apply_foca_cache(build(), CONFIG)
    for model in (early, late):
        model.modulate = Wrapped(model.modulate)
    assert torch.equal(draw(late), draw(apply_foca_cache(early, CONFIG)))
    assert foca_cache_stats(late)["collapsed_skips"] == 20 - len(FULL_STEPS)


def test_ungated_features_beside_gated_ones():
    """A table is taken at its word: with one gate dropped the oracle differs, ones and all."""

    class Half(PlainDiT):
        pass

    features = (Feature("attention", 2, "modulation"), Feature("mlp"))
    register_adapter(Half, _spec(features=features))
    torch.manual_seed(0)
    half = Half().eval()
    for block in half.blocks:  # the sixth chunk is a gate of ones
        block.modulation.weight.data[-32:] = 0
        block.modulation.bias.data[-32:] = 1
    literal = PlainDiT().eval()
    literal.load_state_dict(half.state_dict())
    wrap(literal, {"blocks": ("attention", "mlp")}, FULL_STEPS)
    apply_foca_cache(half, CONFIG)
    torch.testing.assert_close(draw(half), draw(literal), rtol=5e-6, atol=5e-6)


def test_gates_of_all_lists_are_read_from_the_first_block():
    class Other(Block):
        def forward(self, x, other):
            return super().forward(x, other)

    class Two(PlainDiT):
        def __init__(self):
            super().__init__()
            self.more = torch.nn.ModuleList([Other(32, 2)])

    (first,), (second,) = _spec().groups, _spec(path="more", gates=LinearGates("other")).groups
    register_adapter(Two, ModelSpec(groups=(first, second), sample="x", timestep="t"))
    with pytest.raises(ValueError, match=r"'other'.*the model's first block does not take it"):
        apply_foca_cache(Two())


@pytest.mark.parametrize("wrong", [PlainDiT(), "PlainDiT", int])
def test_only_classes_of_modules_can_be_registered(wrong):
    with pytest.raises(TypeError, match=r"expected a subclass of torch\.nn\.Module"):
        register_adapter(wrong, _spec())


def test_an_unknown_class_is_refused_with_the_way_out():
    with pytest.raises(TypeError, match="a class given to register_adapter, got Linear"):
        apply_foca_cache(torch.nn.Linear(2, 2))
