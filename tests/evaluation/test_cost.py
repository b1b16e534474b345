"""Nothing is assumed of a cache's cost: FLOPs against a hand count and torch's own counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foca_dit.evaluation.cost import FlopMode, measured
from foca_dit.evaluation.own import UNIFORM


@torch.inference_mode()
def test_flops_of_one_block_by_hand(dit):
    block, tokens, batch = dit.transformer_blocks[0], 9, 2
    width = dit.config.num_attention_heads * dit.config.attention_head_dim
    x = torch.randn(batch, tokens, width)
    with FlopMode() as counted:
        block(
            x,
            timestep=torch.tensor([3.0, 3.0]),
            class_labels=torch.tensor([0, 1]),
        )
    rows = batch * tokens
    attention = 4 * 2 * rows * width * width + 2 * 2 * batch * tokens * tokens * width
    feedforward = 2 * 2 * rows * width * 4 * width
    embedding = 2 * batch * (256 * width + width * width)  # the block's own timestep embedding
    modulation = 2 * batch * width * 6 * width
    assert counted.flops == attention + feedforward + embedding + modulation


def test_flops_are_those_of_torchs_counter(setting):
    """With the plain attention: torch's counter has no formula for the CPU's fused one."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        outcome = setting.draw(steps=3)
    assert outcome.cost.flops == counter.get_total_flops()


def test_modules_are_counted_where_they_run(setting):
    outcome = setting.draw(steps=5)
    assert outcome.cost.full_steps == 5
    assert outcome.cost.attention == outcome.cost.feedforward == 5 * 3
    assert outcome.cost.seconds > 0


def test_skipped_modules_are_not_counted(setting):
    by_name = {rival.name: rival for rival in UNIFORM}
    outcome = by_name["FoCa, c = 1/2"].run(setting, 6)
    assert outcome.cost.full_steps == 6
    assert outcome.cost.flops < setting.draw().cost.flops * 0.6


def test_hooks_are_gone_afterwards(dit):
    with pytest.raises(KeyError), measured(dit):
        raise KeyError
    assert not any(module._forward_hooks for module in dit.modules())
