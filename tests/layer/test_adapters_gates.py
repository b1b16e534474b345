"""Gate rows: only those needed, and the whole layer where it is more than a Linear."""

import warnings

import pytest
import torch
from cases import BY_NAME
from diffusers.models.embeddings import Timesteps
from literal import wrap
from models import draw, tiny_dit

from foca_dit import FoCaCacheConfig, apply_foca_cache, foca_cache_stats
from foca_dit.adapters import gates
from foca_dit.adapters.gates import linear_rows
from foca_dit.adapters.hooks import find_hook

CONFIG = FoCaCacheConfig(preset="paper", cache_interval=4, history_dtype=torch.float32)
FULL_STEPS = (0, 1, 2, 6, 10)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunks", [(2,), (2, 5), (2, 8, 5), (1, 2, 3), (5, 2)])
@torch.no_grad()
def test_rows_are_those_of_the_whole_layer(bias, chunks):
    linear = torch.nn.Linear(6, 9 * 4, bias=bias)
    conditioning = torch.randn(3, 6)
    whole = linear(conditioning).chunk(9, dim=1)
    for chunk, rows in zip(chunks, linear_rows(linear, conditioning, chunks, 4), strict=True):
        assert rows.shape == (3, 1, 4)
        assert rows.is_contiguous()
        torch.testing.assert_close(rows[:, 0], whole[chunk])


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_rows_in_one_product_equal_a_product_each(bias):
    """Half floats on the CPU take the one form, all else the other."""
    linear = torch.nn.Linear(6, 6 * 4, bias=bias)
    conditioning = torch.randn(3, 6)
    together = gates._rows_at_once(linear, conditioning, slice(2, 6, 3), 4)
    for chunk, other in zip((2, 5), together, strict=True):
        assert other.is_contiguous()
        one = gates._rows(linear, conditioning, slice(4 * chunk, 4 * chunk + 4))
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_only_gate_rows_of_the_weight_are_read():
    """Shift and scale rows are poisoned: a product with them would be NaN times zero."""
    linear = torch.nn.Linear(6, 6 * 4)
    linear.weight[: 2 * 4] = linear.weight[3 * 4 : 5 * 4] = torch.nan
    assert all(rows.isfinite().all() for rows in linear_rows(linear, torch.randn(2, 6), (2, 5), 4))


class LoRALinear(torch.nn.Module):
    """What a LoRA layer is: the base layer beside a product of two thin ones."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base.weight

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def int8(linear):
    """torch's own dynamically quantised layer; its `weight` is a method."""
    with warnings.catch_warnings(action="ignore"):
        quantised = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(linear), {torch.nn.Linear}
        )
    return quantised[0]


def _adapt(model, wrapper):
    torch.manual_seed(7)
    for block in [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", ())]:
        for owner, name in ((block, "norm1"), (block, "norm"), (block, "norm2")):
            if isinstance(getattr(getattr(owner, name, None), "linear", None), torch.nn.Linear):
                norm = getattr(owner, name)
                norm.linear = wrapper(norm.linear)
    return model.eval()


@pytest.mark.parametrize("wrapper", [LoRALinear, int8])
@pytest.mark.parametrize("name", ["flux", "hunyuan-video", "sd3", "cogvideox"])
def test_adapted_modulation_layers_are_evaluated_whole(name, wrapper):
    case = BY_NAME[name]
    literal = _adapt(case.model(), wrapper)
    wrap(literal, case.wrapped, FULL_STEPS)
    model = _adapt(case.model(), wrapper)
    apply_foca_cache(model, CONFIG)
    actual = case.draw(model)
    assert foca_cache_stats(model)["collapsed_skips"] == 7
    torch.testing.assert_close(actual, case.draw(literal), rtol=5e-6, atol=5e-6)
    assert not torch.allclose(actual, case.draw(apply_foca_cache(case.model(), CONFIG)), atol=1e-4)


def test_layers_cast_by_diffusers_are_evaluated_whole():
    case = BY_NAME["qwen"]  # its modulation is not exempt from the casting by its name

    def cast(model):
        model.enable_layerwise_casting(torch.float8_e4m3fn, compute_dtype=torch.float32)
        assert model.transformer_blocks[0].img_mod[1].weight.dtype == torch.float8_e4m3fn
        return model

    literal = cast(case.model())
    wrap(literal, case.wrapped, FULL_STEPS)
    model = apply_foca_cache(cast(case.model()), CONFIG)
    # The case draws in the dtype of the first parameter, which is a cast one.
    for module in (literal, model):
        module.parameters = lambda recurse=True: iter([torch.nn.Parameter(torch.zeros(1))])
    actual = case.draw(model)
    assert foca_cache_stats(model)["collapsed_skips"] == 7
    torch.testing.assert_close(actual, case.draw(literal), rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen"])
def test_conditioning_that_blocks_share_is_computed_once(name, monkeypatch):
    case, calls = BY_NAME[name], []
    compute = gates._conditioning
    monkeypatch.setattr(gates, "_conditioning", lambda *a: calls.append(a) or compute(*a))
    case.draw(apply_foca_cache(case.model(), CONFIG))
    assert len(calls) == 7  # once per skipped step, for all blocks


def test_sinusoids_that_blocks_share_are_made_once(monkeypatch):
    calls, forward = [], Timesteps.forward
    monkeypatch.setattr(Timesteps, "forward", lambda *a: calls.append(a) or forward(*a))
    model = apply_foca_cache(tiny_dit(), CONFIG)
    draw(model)
    full, skipped = len(FULL_STEPS), 12 - len(FULL_STEPS)
    blocks = len(model.transformer_blocks)
    assert len(calls) == full * (blocks + 1) + skipped * 2  # the gates' and the head's


def test_embeddings_with_hooks_are_called_whole():
    images = []
    for collapse in (True, False):
        model = apply_foca_cache(tiny_dit(), CONFIG)
        find_hook(model).collapse = collapse
        embedding = model.transformer_blocks[1].norm1.emb
        embedding.register_forward_hook(lambda module, args, output: 2 * output)
        images.append(draw(model))
    torch.testing.assert_close(*images, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(images[0], draw(apply_foca_cache(tiny_dit(), CONFIG)), atol=1e-4)
