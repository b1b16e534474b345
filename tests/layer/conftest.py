import pytest
from models import tiny_dit


@pytest.fixture
def dit():
    return tiny_dit()
