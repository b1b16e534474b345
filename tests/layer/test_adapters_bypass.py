"""What feeds something in between the blocks: such calls run uncached, and say why."""

import math

import pytest
import torch
from cases import BY_NAME
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats
from foca_dit.adapters.arguments import one_timestep
from foca_dit.adapters.models import find_spec

CONFIG = FoCaCacheConfig(preset="paper", cache_interval=4, history_dtype=torch.float32)


CONTROLNET = pytest.mark.supports("ControlNet")


def _residuals(*shape, count=2):
    return [
        torch.randn(2, *shape, generator=torch.Generator().manual_seed(i)) for i in range(count)
    ]


def _double(module, arguments, output):
    return tuple(2 * part for part in output) if isinstance(output, tuple) else 2 * output


@pytest.mark.parametrize(("granularity", "path"), [("stack", "1"), ("module", "1.ff")])
def test_forward_hooks_of_ones_own_are_not_forecast_around(granularity, path):
    """In a skipped step a block's would run again, and a cached module's would not run."""
    case, model = BY_NAME["flux"], BY_NAME["flux"].model()
    model.transformer_blocks.get_submodule(path).register_forward_hook(_double)
    expected = case.draw(model)
    apply_foca_cache(model, FoCaCacheConfig(cache_interval=4, granularity=granularity))
    with pytest.warns(UserWarning, match="a forward hook on .* may change what is cached"):
        assert torch.equal(case.draw(model), expected)
    assert foca_cache_stats(model)["skipped_steps"] == 0


def test_a_hook_of_ones_own_in_diffusers_registry_is_not_forecast_around():
    class Doubled(ModelHook):
        def post_forward(self, module, output):
            return _double(module, (), output)

    case, model = BY_NAME["flux"], BY_NAME["flux"].model()
    registry = HookRegistry.check_if_exists_or_initialize(model.transformer_blocks[0])
    registry.register_hook(Doubled(), "doubled")
    expected = case.draw(model)
    apply_foca_cache(model, FoCaCacheConfig(cache_interval=4, granularity="stack"))
    with pytest.warns(UserWarning, match="the hook Doubled may change what the blocks compute"):
        assert torch.equal(case.draw(model), expected)


def test_forward_hooks_elsewhere_are_no_reason():
    case, model, seen = BY_NAME["flux"], BY_NAME["flux"].model(), []
    expected = case.draw(apply_foca_cache(model, CONFIG))
    model.x_embedder.register_forward_hook(lambda *_: seen.append(1))
    model.transformer_blocks[0].ff.register_forward_pre_hook(lambda *_: seen.append(2))
    assert torch.equal(case.draw(model), expected)
    assert not foca_cache_stats(model)["bypasses"]
    assert set(seen) == {1, 2}


@pytest.mark.parametrize("granularity", ["module", "stack"])
@pytest.mark.parametrize(
    ("name", "extra", "said"),
    [
        pytest.param(
            "flux",
            {"controlnet_block_samples": _residuals(6, 32)},
            "controlnet_block_samples",
            marks=CONTROLNET,
        ),
        pytest.param(
            "flux",
            {"controlnet_single_block_samples": _residuals(6, 32)},
            "controlnet_single_block_samples",
            marks=CONTROLNET,
        ),
        pytest.param(
            "sd3",
            {"block_controlnet_hidden_states": _residuals(16, 32)},
            "block_controlnet_hidden_states",
            marks=CONTROLNET,
        ),
        pytest.param(
            "sd3", {"skip_layers": [1]}, "skip_layers", marks=pytest.mark.supports("layer skip")
        ),
        pytest.param(
            "qwen",
            {"controlnet_block_samples": _residuals(10, 32)},
            "controlnet_block_samples",
            marks=CONTROLNET,
        ),
    ],
)
def test_the_call_runs_uncached_and_says_why(name, extra, said, granularity):
    case, model = BY_NAME[name], BY_NAME[name].model()
    expected = case.draw(model, **extra)
    assert not torch.equal(expected, case.draw(model))
    apply_foca_cache(
        model, FoCaCacheConfig(preset="paper", cache_interval=4, granularity=granularity)
    )
    with pytest.warns(UserWarning, match=f"runs uncached: the call passes {said}"):
        actual = case.draw(model, **extra)
    assert torch.equal(actual, expected)
    stats = foca_cache_stats(model)
    assert stats["full_steps"] + stats["skipped_steps"] == 0
    assert sum(stats["bypasses"].values()) == 12


@pytest.mark.parametrize("granularity", ["module", "stack"])
@pytest.mark.parametrize("name", ["sd3", "pixart"])
def test_feed_forwards_in_chunks(name, granularity):
    """A cached module is then called in pieces; the stack does not mind."""
    case, model = BY_NAME[name], BY_NAME[name].model()
    for block in model.transformer_blocks:
        block.set_chunk_feed_forward(1, 0)
    expected = case.draw(model)
    apply_foca_cache(model, FoCaCacheConfig(cache_interval=4, granularity=granularity))
    if granularity == "stack":
        case.draw(model)
        assert foca_cache_stats(model)["skipped_steps"] > 0
        return
    with pytest.warns(UserWarning, match="runs uncached: forward chunking"):
        assert torch.equal(case.draw(model), expected)
    assert foca_cache_stats(model)["skipped_steps"] == 0


def test_sums_over_float16_features_keep_their_range():
    """Every feature fits, their sum does not."""
    case, model = BY_NAME["pixart"], BY_NAME["pixart"].model()
    for block in model.transformer_blocks:
        block.ff.net[2].bias.data.fill_(4e4)
        block.scale_shift_table.data[5] = 1e-4
    model.half()
    apply_foca_cache(model, FoCaCacheConfig(cache_interval=4, granularity="module"))
    assert case.draw(model, dtype=torch.float16).isfinite().all()
    stats = foca_cache_stats(model)
    assert stats["skipped_steps"] > 0
    assert stats["features"] < 3 * len(model.transformer_blocks)


@torch.no_grad()
def test_reference_tokens_of_flux2_run_uncached():
    """They are modulated by a timestep of their own, and the call returns keys and values."""
    case = BY_NAME["flux2"]
    model, generator = case.model(), torch.Generator().manual_seed(0)
    call = {
        "hidden_states": torch.randn(2, *case.shape, generator=generator),
        "timestep": case.timestep(0.5, 2),
        "return_dict": False,
        **case.inputs(2, generator),
        "kv_cache_mode": "extract",
        "num_ref_tokens": 2,
    }
    expected = model(**call)[0]
    apply_foca_cache(model, CONFIG)
    with pytest.warns(UserWarning, match="runs uncached: the call passes kv_cache_mode"):
        assert torch.equal(model(**call)[0], expected)


@pytest.mark.supports("IP-Adapter")
def test_an_ip_adapter_is_told_from_the_call():
    case = BY_NAME["flux"]

    def adapted():
        model = case.model()
        torch.manual_seed(3)
        projection = ImageProjection(
            image_embed_dim=16, cross_attention_dim=32, num_image_text_embeds=4
        )
        model.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
        for block in model.transformer_blocks:
            block.attn.set_processor(FluxIPAdapterAttnProcessor(32, 32))
        return model.eval()

    def draw(model):
        image = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))
        return case.draw(model, joint_attention_kwargs={"ip_adapter_image_embeds": [image]})

    model = apply_foca_cache(adapted(), CONFIG)
    with pytest.warns(UserWarning, match="the call passes joint_attention_kwargs.ip_"):
        actual = draw(model)
    assert torch.equal(actual, draw(adapted()))
    assert sum(foca_cache_stats(model)["bypasses"].values()) == 12


@pytest.mark.parametrize("name", ["flux", "bria", "sd3"])
@pytest.mark.parametrize("argument", ["joint_attention_kwargs", "attention_kwargs"])
@pytest.mark.parametrize("key", ["ip_adapter_image_embeds", "ip_hidden_states"])
def test_keys_of_arguments_are_looked_at(name, argument, key):
    spec = find_spec(BY_NAME[name].model())
    assert spec.forbidden({argument: {key: [torch.zeros(1)]}}) == f"{argument}.{key}"
    assert spec.forbidden({argument: {key: None, "scale": 1.0}}) is None
    assert spec.forbidden({argument: None}) is None


def test_other_joint_attention_kwargs_are_no_reason():
    case = BY_NAME["flux"]
    model = apply_foca_cache(case.model(), CONFIG)
    case.draw(model, joint_attention_kwargs={})
    case.draw(model, joint_attention_kwargs=None)
    assert foca_cache_stats(model)["skipped_steps"] == 14
    assert not foca_cache_stats(model)["bypasses"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (5, 5.0),
        (torch.tensor(5), 5.0),
        (torch.tensor([5.0]).expand(3), 5.0),
        (torch.tensor([5.0, 5.0]), 5.0),
        (torch.tensor([5.0, 4.0]), None),
        (torch.tensor([math.nan, math.nan]), None),
        (torch.tensor([[5.0, 0.0], [5.0, 5.0]]), 5.0),  # per token: those of given images are lower
        (torch.tensor([[5.0, 0.0], [4.0, 5.0], [4.0, 4.0]]), None),
    ],
)
def test_the_timestep_of_a_batch(given, expected):
    assert one_timestep(given) == expected
