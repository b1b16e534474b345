import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def _inference():
    """As the suite's main program runs its parts."""
    with torch.inference_mode():
        yield
    torch._dynamo.reset()


@pytest.fixture
def run(tmp_path):
    """A run of the suite on the CPU, at tiny shapes, that keeps its rows in a file."""
    from _measure import Budget, Results
    from suite.run import Run

    return Run("cpu", Results(tmp_path / "rows.json", "cpu"), Budget(600), tiny=True, rounds=1)
