"""Which backends this run covered: a skip here is a backend that no other test has seen."""

import os
import subprocess
import sys

import pytest
import torch
from backends import BACKENDS, overload
from conftest import FOUND

import foca_kernels
from foca_kernels import registry
from foca_kernels.registry import FUNCTIONS


@pytest.mark.parametrize(
    "name", [pytest.param(b, marks=[pytest.mark.gpu] if "cuda" in b else []) for b in BACKENDS]
)
def test_backend_is_here(name):
    if isinstance(FOUND[name], str):
        pytest.skip(FOUND[name])
    assert set(FOUND[name].functions) == set(FUNCTIONS.values())


def test_schemas_are_defined_as_written():
    for name, schema in foca_kernels.SCHEMAS.items():
        defined = str(overload(name)._schema)
        assert defined.removeprefix("foca::").startswith(name + "(")
        assert defined.count("Tensor") == schema.count("Tensor")


def test_every_public_name_is_documented():
    for name in foca_kernels.__all__:
        thing = getattr(foca_kernels, name)
        assert not callable(thing) or thing.__doc__


def import_with(choice, **variables):
    """Imports foca_kernels in a new process; returns (exit status, output)."""
    code = (
        "import torch, foca_kernels; print(foca_kernels.backend_report());"
        "print(torch.ops.foca.forecast([torch.ones(2)], torch.tensor([2.0])).tolist())"
    )
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FOCA_BACKEND")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**env, **variables, **({"FOCA_BACKEND": choice} if choice else {})},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("choice", ["", "auto", "reference"])
def test_a_choice_that_always_works(choice):
    status, output = import_with(choice)
    assert status == 0, output
    assert "[2.0, 2.0]" in output
    if choice == "reference":
        assert "'CPU': {'backend': 'reference'}" in output


def test_unknown_backend():
    status, output = import_with("fast")
    assert status != 0
    assert "FOCA_BACKEND=fast: expected one of auto, cpp, triton, reference" in output


def test_another_import_after_one_that_failed():
    code = (
        "import os, torch\n"
        "os.environ['FOCA_BACKEND'] = 'fast'\n"
        "try: import foca_kernels\n"
        "except ImportError as error: print(error)\n"
        "os.environ['FOCA_BACKEND'] = ''\n"
        "import foca_kernels\n"
        "print(torch.ops.foca.forecast([torch.ones(2)], torch.tensor([2.0])).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "expected one of auto" in done.stdout
    assert "[2.0, 2.0]" in done.stdout


def test_cpp_serves_or_says_why_not():
    status, output = import_with("cpp")
    if foca_kernels.backend_report()["CPU"]["backend"] == "cpp":
        assert status == 0, output
        assert "'CPU': {'backend': 'cpp'}" in output
    else:
        assert "FOCA_BACKEND=cpp cannot serve CPU tensors: _C.abi3.so" in output


def test_triton_serves_or_says_why_not():
    pytest.importorskip("triton")
    status, output = import_with("triton", TRITON_INTERPRET="1")
    assert status == 0, output
    assert "'CPU': {'backend': 'triton'}" in output
    status, output = import_with("triton")
    if torch.backends.cuda.is_built():
        assert status == 0, output
    else:
        assert "FOCA_BACKEND=triton: this PyTorch has no CUDA" in output


@pytest.mark.parametrize(
    ("choice", "device", "interpret", "tried"),
    [
        ("auto", "CPU", "0", ("cpp", "reference")),
        ("auto", "CUDA", "0", ("cpp", "triton", "reference")),
        ("triton", "CUDA", "0", ("triton",)),
        ("triton", "CPU", "0", ("cpp", "reference")),
        ("triton", "CPU", "1", ("triton",)),
        ("cpp", "CUDA", "0", ("cpp",)),
        ("reference", "CPU", "0", ("reference",)),
    ],
)
def test_order_of_preference(monkeypatch, choice, device, interpret, tried):
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    assert registry._candidates(choice, device) == tried


@pytest.fixture
def own_report(monkeypatch):
    monkeypatch.setattr(registry, "_report", {})


@pytest.mark.usefixtures("own_report")
def test_what_cannot_be_loaded_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    libraries = {"CPU": "missing.abi3.so", "CUDA": str(broken)}
    monkeypatch.setattr(registry, "LIBRARIES", libraries)
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"cpp cannot serve CPU tensors: missing.abi3.so is not"):
        registry._serve(registry._library, "cpp", "CPU")
    with pytest.raises(
        ImportError, match=r"cpp cannot serve CUDA tensors: broken.so does not load"
    ):
        registry._serve(registry._library, "cpp", "CUDA")
    with pytest.raises(ImportError, match=r"CUDA tensors: Triton is not installed"):
        registry._serve(registry._library, "triton", "CUDA")
    registry._serve(registry._library, "auto", "CPU")
    report = foca_kernels.backend_report()
    assert report["CPU"]["backend"] == "reference"
    assert "missing.abi3.so is not built" in report["CPU"]["cpp"]


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "only with TRITON_INTERPRET=1" in registry._missing("triton", "CPU")
