"""Backends as parameters: every test of an operator runs on each backend and device there is.

Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before Triton is
imported: tests/conftest.py does.
"""

import pytest
import torch
from backends import BACKENDS, Backend, find_backend

FOUND = {name: find_backend(name) for name in BACKENDS}


def pytest_configure(config):
    # Overflow to infinity is what some tests are about; under the interpreter numpy remarks on it.
    ignore = "ignore:.*encountered in (multiply|cast|add|subtract):RuntimeWarning:triton"
    config.addinivalue_line("filterwarnings", ignore)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def pytest_generate_tests(metafunc):
    """Fills in ``backend``, or ``backend`` and ``dtype``, with what there is and goes together.

    Only backends that are here become parameters; test_backends.py says once what is not, and why.
    """
    if "cuda_backend" in metafunc.fixturenames:
        names = [pytest.param(name, marks=pytest.mark.gpu) for name in FOUND if "cuda" in name]
        metafunc.parametrize("cuda_backend", names, indirect=True)
    if "backend" not in metafunc.fixturenames:
        return
    with_dtype = "dtype" in metafunc.fixturenames
    params = []
    for name, backend in FOUND.items():
        if not isinstance(backend, Backend):
            continue
        marks = [pytest.mark.gpu] if backend.device == "cuda" else []
        if not with_dtype:
            params.append(pytest.param(backend, id=name, marks=marks))
            continue
        for dtype in backend.dtypes:
            case = f"{name}-{str(dtype).removeprefix('torch.')}"
            params.append(pytest.param(backend, dtype, id=case, marks=marks))
    metafunc.parametrize(("backend", "dtype") if with_dtype else "backend", params)


@pytest.fixture
def cuda_backend(request) -> Backend:
    """One backend on a CUDA device; skips what is not built."""
    found = FOUND[request.param]
    if isinstance(found, str):
        pytest.skip(found)
    return found
