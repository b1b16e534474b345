"""Granularities `stack` and `output` of the other transformers of diffusers.

The oracle knows nothing of blocks: where input and time stand all but still, a skipped step must
give what the uncached model gives. A stream that is mixed up, dropped or added twice does not.
"""

import re
from pathlib import Path

import diffusers
import pytest
import torch
from cases import CASES
from diffusers.hooks._helpers import TransformerBlockRegistry
from generic_cases import GENERIC, build, randn

from foca_dit import (
    CacheState,
    FoCaCacheConfig,
    apply_foca_cache,
    cache_scope,
    foca_cache_stats,
    remove_foca_cache,
)
from foca_dit.adapters.generic import KNOWN
from foca_dit.adapters.hooks import find_hook
from foca_dit.adapters.models import SPECS, find_spec

PAIRS = [(name, granularity) for name in GENERIC for granularity in GENERIC[name][3]]
# The models whose blocks a table names.
TABLED = set(SPECS) | {name for name, facts in KNOWN.items() if facts.get("groups")}
NEAR = [0.8 - 1e-5 * i for i in range(6)]


@torch.no_grad()
def _outputs(model, call, unit, times):
    name = find_spec(model).timestep

    def one(t):
        timestep = unit(t) if callable(unit) else torch.tensor([unit * t])
        output = model(**{name: timestep}, return_dict=False, **call)
        outputs = [output] if isinstance(output, torch.Tensor) else list(output)
        if isinstance(outputs[0], list):
            return torch.stack(outputs[0])
        return outputs[0] if len(outputs) == 1 else torch.cat([o.flatten() for o in outputs])

    return [one(t) for t in times]


def _check(model, granularity, call, unit):
    expected = _outputs(model, call, unit, NEAR)
    assert not torch.equal(_outputs(model, call, unit, [0.1])[0], expected[0])
    config = FoCaCacheConfig(
        scheme="foca",  # the slope between the first two steps is followed in full
        granularity=granularity,
        cache_interval=5,
        disable_cache_before_step=2,
    )
    apply_foca_cache(model, config)
    actual = _outputs(model, call, unit, NEAR)
    assert foca_cache_stats(model)["skipped_steps"] == 4
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())
    remove_foca_cache(model)
    again = _outputs(model, call, unit, NEAR)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


@pytest.mark.supports("granularity", "removal")
@pytest.mark.parametrize(("name", "granularity"), PAIRS)
def test_a_skipped_step_continues_what_the_model_computes(name, granularity):
    _, call, unit, granularities = GENERIC[name]
    model = build(name)
    assert find_spec(model).granularities == granularities
    _check(model, granularity, call, unit)


@pytest.mark.supports("granularity", "removal")
@pytest.mark.parametrize("granularity", ["stack", "output"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_so_do_the_models_that_are_cached_module_by_module(case, granularity):
    generator = torch.Generator().manual_seed(0)
    call = {"hidden_states": torch.randn(2, *case.shape, generator=generator)}
    call |= case.inputs(2, generator)
    _check(case.model(), granularity, call, lambda t: case.timestep(t, 2))


@pytest.mark.parametrize("name", [name for name, granularity in PAIRS if granularity == "stack"])
def test_no_block_runs_in_a_skipped_step(name):
    _, call, unit, _ = GENERIC[name]
    model, ran = build(name), []
    for group in find_spec(model).groups:
        for block in model.get_submodule(group.path):
            inner = next(block.children())
            inner.register_forward_hook(lambda *_: ran.append(1))
    apply_foca_cache(
        model, FoCaCacheConfig(granularity="stack", cache_interval=5, disable_cache_before_step=2)
    )
    _outputs(model, call, unit, [0.8, 0.7])
    full = len(ran)
    assert full >= 2 * len(find_hook(model).layout.blocks)
    _outputs(model, call, unit, [0.6, 0.5])
    assert len(ran) == full


@pytest.mark.parametrize("name", ["MochiTransformer3DModel", "SanaTransformer2DModel"])
def test_the_presets_module_granularity_gives_way_to_stack(name):
    model = apply_foca_cache(build(name), FoCaCacheConfig(preset="paper"))
    assert foca_cache_stats(model)["granularity"] == "stack"
    with pytest.raises(ValueError, match=r"expected a granularity out of \('stack', 'output'\)"):
        apply_foca_cache(build(name), FoCaCacheConfig(granularity="module"))


@torch.no_grad()
def test_several_outputs_come_back_each_in_its_shape():
    """Video and sound, of two requests of different length in turn."""
    name = "LTX2VideoTransformer3DModel"
    _, call, unit, _ = GENERIC[name]
    longer = call | {"audio_hidden_states": randn(1, 9, 4), "audio_num_frames": 9}
    model = build(name)
    config = FoCaCacheConfig(granularity="output", cache_interval=3, disable_cache_before_step=2)
    expected = [
        [model(timestep=torch.tensor([unit * t]), **given) for given in (call, longer)]
        for t in NEAR
    ]
    apply_foca_cache(model, config)
    states = CacheState(config), CacheState(config)
    for t, both in zip(NEAR, expected, strict=True):
        for given, state, wanted in zip((call, longer), states, both, strict=True):
            with cache_scope(model, state):
                got = model(timestep=torch.tensor([unit * t]), **given)
            assert type(got) is type(wanted)
            torch.testing.assert_close(got.sample, wanted.sample, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(got.audio_sample, wanted.audio_sample, rtol=1e-3, atol=1e-3)
    assert [state.stats.skipped_steps for state in states] == [3, 3]


@torch.no_grad()
def test_several_outputs_need_one_return_dict():
    name = "LTX2VideoTransformer3DModel"
    _, call, unit, _ = GENERIC[name]
    model = apply_foca_cache(
        build(name),
        FoCaCacheConfig(granularity="output", cache_interval=5, disable_cache_before_step=2),
    )
    for t in (0.8, 0.7):
        model(timestep=torch.tensor([unit * t]), return_dict=False, **call)
    with pytest.raises(TypeError, match="expected the `return_dict=False` of the computed steps"):
        model(timestep=torch.tensor([unit * 0.6]), **call)
    video, sound = model(timestep=torch.tensor([unit * 0.6]), return_dict=False, **call)
    assert video.shape == call["hidden_states"].shape
    assert sound.shape == call["audio_hidden_states"].shape
    assert foca_cache_stats(model)["skipped_steps"] == 1


@pytest.mark.supports("ControlNet")
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        (
            "SanaTransformer2DModel",
            {"controlnet_block_samples": [torch.full((1, 64, 8), 0.1) for _ in range(2)]},
        ),
        (
            "ChromaTransformer2DModel",
            {"controlnet_block_samples": [torch.full((1, 16, 32), 0.1) for _ in range(2)]},
        ),
        (
            "ZImageTransformer2DModel",
            {"controlnet_block_samples": {0: torch.full((1, 1, 32), 0.1)}},
        ),
    ],
)
def test_controlnet_residuals_run_uncached_and_say_so(name, extra):
    _, call, unit, _ = GENERIC[name]
    model = build(name)
    expected = _outputs(model, call | extra, unit, NEAR)
    apply_foca_cache(
        model, FoCaCacheConfig(granularity="stack", cache_interval=5, disable_cache_before_step=2)
    )
    with pytest.warns(UserWarning, match="the call passes controlnet_block_samples"):
        actual = _outputs(model, call | extra, unit, NEAR)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_a_model_that_is_not_called_with_latent_and_time_is_refused():
    with torch.device("meta"):
        model = diffusers.Cosmos3OmniTransformer(num_hidden_layers=1)
    with pytest.raises(TypeError, match="a transformer of diffusers or a class given to"):
        apply_foca_cache(model)


def test_blocks_beside_others_are_no_plain_stack():
    """VACE's blocks are registered, but a second list feeds hints in between."""
    with torch.device("meta"):
        model = diffusers.WanVACETransformer3DModel(num_layers=2, vace_layers=[0])
    assert find_spec(model).granularities == ("output",)


# Every block class that diffusers registers, and the model that stands for it in these tests.
STANDS_FOR = {
    "BasicTransformerBlock": "DiTTransformer2DModel",
    "BriaTransformerBlock": "BriaTransformer2DModel",
    "CogVideoXBlock": "CogVideoXTransformer3DModel",
    "CogView4TransformerBlock": "CogView4Transformer2DModel",
    "FluxTransformerBlock": "FluxTransformer2DModel",
    "FluxSingleTransformerBlock": "FluxTransformer2DModel",
    "Flux2TransformerBlock": "Flux2Transformer2DModel",
    "Flux2SingleTransformerBlock": "Flux2Transformer2DModel",
    "HunyuanVideoTransformerBlock": "HunyuanVideoTransformer3DModel",
    "HunyuanVideoSingleTransformerBlock": "HunyuanVideoTransformer3DModel",
    "HunyuanVideoTokenReplaceTransformerBlock": "HunyuanVideoTransformer3DModel",
    "HunyuanVideoTokenReplaceSingleTransformerBlock": "HunyuanVideoTransformer3DModel",
    "HunyuanImageTransformerBlock": "HunyuanImageTransformer2DModel",
    "HunyuanImageSingleTransformerBlock": "HunyuanImageTransformer2DModel",
    "JointTransformerBlock": "SD3Transformer2DModel",
    "Kandinsky5TransformerDecoderBlock": "Kandinsky5Transformer3DModel",
    "LTXVideoTransformerBlock": "LTXVideoTransformer3DModel",
    "MochiTransformerBlock": "MochiTransformer3DModel",
    "MotifVideoTransformerBlock": "MotifVideoTransformer3DModel",
    "MotifVideoSingleTransformerBlock": "MotifVideoTransformer3DModel",
    "QwenImageTransformerBlock": "QwenImageTransformer2DModel",
    "WanTransformerBlock": "WanTransformer3DModel",
    "ZImageTransformerBlock": "ZImageTransformer2DModel",
    # Not served: called without a latent and a time.
    "Cosmos3VLTextMoTDecoderLayer": None,
}


def test_every_registered_block_class_is_accounted_for():
    TransformerBlockRegistry._register()
    assert {cls.__name__ for cls in TransformerBlockRegistry._registry} == set(STANDS_FOR)
    tested = {type(case.build()).__name__ for case in CASES} | set(GENERIC)
    assert set(STANDS_FOR.values()) - {None} <= tested
    # What the tables name is tested, too.
    assert tested >= TABLED


# `timestep / 1000` and alike, as pipelines write it where they call their transformer.
DIVIDES = re.compile(
    r"\b(t|timestep|current_timestep)(\.float\(\)|\]|\))? / "
    r"(1000|((self|components)\.scheduler\.config\.)?num_train_timesteps)\b"
)
# There the quotient is compared with, or drawn noise by, and not passed on.
NOT_PASSED_ON = {"pipeline_ltx_condition", "pipeline_sana_wm"}
# torch.tensor([t / 1000]); sigma / (sigma + 1); its scheduler's timesteps are from 0 to 1
OTHERWISE = {
    "AuraFlowTransformer2DModel",
    "CosmosTransformer3DModel",
    "StableAudioDiTModel",
}
# A time that runs from noise at 0 to the data, and schedulers whose timesteps do.
REVERSES = re.compile(
    r"\b1 - (t|current_timestep) / |\b1\.0 - \(t\.float\(\) / |\(1000 - timestep\)|"
    r"invert_sigmas=True|reversed timesteps"
)


def _loops():
    """The text of every pipeline of diffusers, and the transformers that it calls."""
    root = Path(diffusers.__file__).parent
    for file in (root / "pipelines").rglob("pipeline_*.py"):
        text = file.read_text()
        if file.stem not in NOT_PASSED_ON:
            yield text, set(re.findall(r"\btransformer: (\w+)", text))
    for folder in (root / "modular_pipelines").iterdir():
        text = "".join(file.read_text() for file in sorted(folder.glob("*.py")))
        yield text, set(re.findall(r'ComponentSpec\("transformer", ([A-Z]\w+)', text))


def _transformers(pattern):
    """The transformers in whose pipelines' text the pattern is found, and the others, by name."""
    found, others = set(), set()
    for text, names in _loops():
        (found if pattern.search(text) else others).update(names)
    return found, others


def _spec_of(name):
    cls = getattr(diffusers, name)
    model = cls.__new__(cls)
    torch.nn.Module.__init__(model)
    return find_spec(model)


def test_timesteps_have_the_unit_that_the_pipelines_call_with():
    """Times in another unit would put every step at one end of log-SNR, without a word."""
    divided, whole = _transformers(DIVIDES)
    assert len(divided) > 10
    for name in divided | (whole & TABLED - OTHERWISE):
        assert _spec_of(name).timestep_scale == (1.0 if name in divided else 1000.0), name


def test_times_run_as_the_pipelines_run_them():
    """Upwards where 0 is noise: taken the other way round, that is an inversion."""
    up, down = _transformers(REVERSES)
    assert len(up) == 6
    for name in up | (down & TABLED):
        assert _spec_of(name).time_runs_up == (name in up), name
