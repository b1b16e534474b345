import sys
from pathlib import Path

import pytest
import torch

from foca_dit.evaluation.setting import Setting

sys.path.insert(0, str(Path(__file__).parents[1] / "layer"))
from models import tiny_dit


@pytest.fixture(scope="session")
def dit():
    """A DiT whose blocks do something: diffusers starts their gates near 0."""
    model = tiny_dit(channels=1, size=16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in model.transformer_blocks:
            weight = block.norm1.linear.weight
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model


@pytest.fixture
def setting(dit):
    return Setting(dit, steps=12, images=2, seed=3)
