"""Builds the CUDA library in place where it is missing and a compiler is here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch


def build_if_needed(root: Path) -> None:
    """Builds for the GPU of this machine. Without nvcc or cmake, Triton serves, and this says so.

    Must run before foca_kernels is imported: the choice of a backend falls there.
    """
    libraries = ("_C.abi3.so", "_C_cuda.abi3.so")
    spec = importlib.util.find_spec("foca_kernels")
    folder = (
        Path(spec.submodule_search_locations[0])
        if spec and spec.submodule_search_locations
        else root
    )
    if all((folder / name).exists() for name in libraries):
        return
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    if nvcc is None or cmake is None:
        missing = "nvcc" if nvcc is None else "cmake"
        print(f"the CUDA library is not built and {missing} is not here: Triton serves")
        return
    major, minor = torch.cuda.get_device_capability()
    environment = {
        **os.environ,
        "FOCA_BUILD_CUDA": "1",
        "FOCA_CUDA_ARCHS": f"{major}{minor}",
        "CUDACXX": nvcc,
    }
    print(f"building for sm_{major}{minor}", flush=True)
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:], "the build failed: Triton serves", sep="\n")
