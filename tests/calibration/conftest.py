import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "layer"))
from models import tiny_dit


@pytest.fixture
def dit():
    return tiny_dit()
