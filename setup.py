"""Builds the compiled parts with CMake; everything else about the project stands in pyproject.toml.

Environment variables:
    FOCA_SKIP_BUILD=1: build nothing; the wheel is pure Python and the ops run on Triton or PyTorch.
    FOCA_BUILD_CUDA=0|1: leave the CUDA kernels out, or insist on them. Unset: if nvcc is found.
    FOCA_CUDA_ARCHS="90;100": GPU architectures, with PTX of the last one. Default: those of
        80;90;100;120 that this nvcc knows.
    FOCA_CPU_ISAS=all|native|"avx2;avx512": CPU kernels to build. Default: all, of which a machine
        chooses its own; native builds this machine's alone.
    MAX_JOBS: compilers run at once. Default: as many as processors.

torch is neither imported nor a build requirement: only its headers are needed, of any installed
torch from 2.11 on, and because the ops use torch's stable ABI the result serves every such torch.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
PACKAGE = "foca_kernels"
MIN_TORCH = (2, 11)
DEFAULT_ARCHS = ("80", "90", "100", "120")
# What CMake reads from the environment only when a build folder is new.
READ_ONCE = ("CXX", "CXXFLAGS", "CUDAFLAGS", "CUDAHOSTCXX", "LDFLAGS")
WAY_OUT = "or set FOCA_SKIP_BUILD=1 to install without compiled kernels (Triton and PyTorch serve)."


def env_flag(name: str) -> bool | None:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SetupError(f"{name}: expected 0 or 1, got {value!r}")
    return {"": None, "0": False, "1": True}[value]


def find_torch() -> Path:
    """The folder of an installed torch, also from inside pip's build isolation, which hides it."""
    spec = importlib.util.find_spec("torch")
    candidates = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    candidates.append(Path(sysconfig.get_path("purelib")) / "torch")
    for folder in candidates:
        if (folder / "include" / "torch" / "csrc" / "stable").is_dir():
            version = (folder / "version.py").read_text().split("__version__ = ")[1].split("'")[1]
            if tuple(int(n) for n in version.split(".")[:2]) >= MIN_TORCH:
                return folder
            raise SetupError(
                f"torch 2.11 or newer is needed, found {version}: upgrade torch, {WAY_OUT}"
            )
    raise SetupError(f"torch was not found: install torch 2.11 or newer first, {WAY_OUT}")


def find_compiler() -> None:
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None or shutil.which(compiler.split()[0]) is None:
        raise SetupError(f"no C++ compiler was found: install g++ or clang++, {WAY_OUT}")


def find_tool(name: str) -> str | None:
    """An executable beside this Python (where pip puts it), else on the search path."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    return beside or shutil.which(name)


def find_nvcc() -> str | None:
    candidates = [os.environ.get("CUDACXX", ""), "nvcc"]
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home:
            candidates.append(str(Path(home) / "bin" / "nvcc"))
    return next((found for c in candidates if c and (found := shutil.which(c))), None)


def known_to(nvcc: str) -> set[str]:
    """The architectures that this nvcc compiles for; all, if it does not say."""
    try:
        listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    except OSError:
        listed = ""
    return set(re.findall(r"compute_(\d+)", listed)) or set(DEFAULT_ARCHS)


def parts_of(name: str) -> list[str]:
    """The parts of an environment variable, separated by semicolons or commas."""
    return [part for part in re.split("[;,]", os.environ.get(name, "")) if part]


def cuda_arguments() -> list[str]:
    wanted = env_flag("FOCA_BUILD_CUDA")
    nvcc = find_nvcc() if wanted is not False else None
    if nvcc is None:
        if wanted:
            raise SetupError(
                "FOCA_BUILD_CUDA=1, but nvcc was not found: put it on PATH or set CUDA_HOME, "
                "or set FOCA_BUILD_CUDA=0 to build the CPU kernels only."
            )
        return ["-DFOCA_BUILD_CUDA=OFF"]
    archs = parts_of("FOCA_CUDA_ARCHS") or [a for a in DEFAULT_ARCHS if a in known_to(nvcc)]
    archs = archs or list(DEFAULT_ARCHS)
    named = ";".join([f"{a}-real" for a in archs[:-1]] + [archs[-1]])
    return [
        "-DFOCA_BUILD_CUDA=ON",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DCMAKE_CUDA_ARCHITECTURES={named}",
    ]


def planner_arguments() -> list[str]:
    """The scheme tables are optional: without pybind11 only the C++ header has them."""
    spec = importlib.util.find_spec("pybind11")
    if spec is None or not spec.submodule_search_locations:
        return ["-DFOCA_BUILD_PLANNER=OFF"]
    folder = Path(next(iter(spec.submodule_search_locations))) / "share" / "cmake" / "pybind11"
    return [
        "-DFOCA_BUILD_PLANNER=ON",
        "-DPYBIND11_FINDPYTHON=ON",
        f"-Dpybind11_DIR={folder}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]


class CMakeBuild(build_ext):
    """One CMake build for all libraries, which land in the package (in place if editable)."""

    def run(self) -> None:
        find_compiler()
        cmake = find_tool("cmake")
        if cmake is None:
            raise SetupError(f"cmake was not found: pip install cmake, {WAY_OUT}")
        torch = find_torch()
        # One build folder per Python: rebuilding after an edit compiles only what changed.
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        built = build / PACKAGE
        arguments = [
            *("-S", str(ROOT), "-B", str(build), f"-DFOCA_TORCH_DIR={torch}"),
            f"-DFOCA_OUTPUT_DIR={built}",
            f"-DFOCA_CPU_ISAS={';'.join(parts_of('FOCA_CPU_ISAS')) or 'all'}",
            *cuda_arguments(),
            *planner_arguments(),
        ]
        ninja = find_tool("ninja")
        if ninja is not None:
            arguments += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
        shutil.rmtree(built, ignore_errors=True)  # a library that is no longer built must not stay
        self.configure([cmake, *arguments], build)
        self.run_cmake([cmake, "--build", str(build), "--parallel", jobs], build)
        self.install_libraries(sorted(built.glob("*.so")))

    def configure(self, command: list[str], build: Path) -> None:
        """Starts the build folder anew if it was configured for another compiler or other flags."""
        stamp = build / "environment.txt"
        now = "".join(f"{name}={os.environ.get(name, '')}\n" for name in READ_ONCE)
        same = stamp.exists() and stamp.read_text() == now
        stamp.unlink(missing_ok=True)  # a failure from here on leaves the folder as neither
        self.run_cmake([*command, *([] if same else ["--fresh"])], build)
        stamp.write_text(now)

    def run_cmake(self, command: list[str], build: Path) -> None:
        try:
            subprocess.run(command, check=True)
        except subprocess.CalledProcessError:
            raise SetupError(
                f"the build failed, see the compiler's messages above (build folder: {build}); "
                "mend it, or set FOCA_BUILD_CUDA=0 to build the CPU kernels only, or "
                f"FOCA_CUDA_ARCHS to other GPU architectures, {WAY_OUT}"
            ) from None

    def install_libraries(self, libraries: list[Path]) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        target = (ROOT if in_place else Path(self.build_lib)) / PACKAGE
        target.mkdir(parents=True, exist_ok=True)
        for stale in [*target.glob("_C*.so"), *target.glob("_planner*.so")]:
            stale.unlink()
        self.installed = []
        for library in libraries:
            # A new file, not new contents: a process that has the old one loaded keeps running.
            shutil.copy2(library, target / library.name)
            self.installed.append(str(target / library.name))

    def get_outputs(self) -> list[str]:
        return getattr(self, "installed", [])

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()]


if __name__ == "__main__":
    # The extension's name only tells setuptools that the wheel has compiled parts.
    parts = {"ext_modules": [Extension(f"{PACKAGE}._C", [])], "cmdclass": {"build_ext": CMakeBuild}}
    setup(**({} if env_flag("FOCA_SKIP_BUILD") else parts))
