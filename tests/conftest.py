"""What must be set before anything imports torch or Triton, whichever test is collected first; and
the record of what tests marked `supports` show (support_matrix.py).
"""

import os
import sys
from pathlib import Path

# On a machine with other work to do, spinning OpenMP threads make small tests ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import support_matrix

# Timings never gate a test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser):
    parser.addoption(
        "--support-matrix",
        choices=("write", "check"),
        help="write docs/support-matrix.md from the tests that pass, or check what it claims",
    )


def pytest_configure(config):
    """The process that collects the reports keeps the record; xdist's workers only run."""
    if (wanted := config.getoption("support_matrix")) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(support_matrix.Recorder(wanted))


@pytest.fixture(autouse=True, scope="module")
def _one_thread(request):
    """The models are tiny: a second thread only waits for the first. Kernels have all."""
    threads = torch.get_num_threads()
    if "kernels" not in request.path.parts:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _watched(request, monkeypatch):
    """Notes every cache that a test marked `supports` applies."""
    features = [name for marker in request.node.iter_markers("supports") for name in marker.args]
    if not features:
        return
    for name in features:
        assert name in support_matrix.FEATURES, f"supports({name!r}): no such feature"
    from foca_dit.adapters import install

    run = install.install

    def watched(model, spec, granularity, *args, **kwargs):
        run(model, spec, granularity, *args, **kwargs)
        for feature in features:
            claim = (feature, type(model).__name__, granularity)
            request.node.user_properties.append(("supports", claim))

    monkeypatch.setattr(install, "install", watched)
