"""Installing without a compiler, and the sentences that name the way out."""

import os
import runpy
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from setuptools import Distribution

ROOT = Path(__file__).parents[1]


def wheel(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    return subprocess.run(
        [*command, "-w", str(folder), str(ROOT)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_build_the_wheel_is_pure_python(tmp_path):
    """Also where libraries of an earlier build stand in the tree."""
    done = wheel(tmp_path, FOCA_SKIP_BUILD="1")
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.whl")
    assert file.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(file).namelist()
    assert {"foca_kernels/reference.py", "foca_dit/py.typed"} <= set(names)
    assert not [name for name in names if name.endswith(".so")]


def test_a_source_distribution_holds_all_that_the_build_reads_and_no_tests(tmp_path):
    command = "import sys, setuptools.build_meta as m; m.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", command, str(tmp_path)], cwd=ROOT, check=True, capture_output=True
    )
    (file,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert {str(path.relative_to(ROOT)) for path in sources} | {"CMakeLists.txt"} <= names
    assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FOCA_BUILD_CUDA": "yes"}, "FOCA_BUILD_CUDA: expected 0 or 1, got 'yes'"),
        ({"CXX": "/nowhere/c++"}, "no C++ compiler was found: install g++ or clang++, or set"),
    ],
)
def test_what_stops_a_build_says_so(tmp_path, variables, message):
    done = wheel(tmp_path, **variables)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout


def test_other_compiler_flags_reach_a_build_folder_that_is_there(tmp_path, monkeypatch):
    cmake = Path(sys.executable).parent / "cmake"
    if not cmake.exists():
        pytest.skip("needs CMake")
    build = tmp_path / "build"
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(flags LANGUAGES CXX)\n"
        'file(WRITE ${CMAKE_BINARY_DIR}/flags "${CMAKE_CXX_FLAGS}")\n'
    )
    builder = runpy.run_path(str(ROOT / "setup.py"))["CMakeBuild"](Distribution())

    def flags_of_a_build(flags):
        monkeypatch.setenv("CXXFLAGS", flags)
        builder.configure([str(cmake), "-S", str(tmp_path), "-B", str(build)], build)
        return (build / "flags").read_text()

    assert flags_of_a_build("-DFIRST") == "-DFIRST"
    assert flags_of_a_build("-DSECOND") == "-DSECOND"
    kept = build / "CMakeFiles/kept"  # a fresh start would take the folder away
    kept.touch()
    assert flags_of_a_build("-DSECOND") == "-DSECOND"
    assert kept.exists()


def test_an_engine_in_cpp_finds_the_installed_package(tmp_path):
    """examples/cpp_engine, beside what `make test-cpp` has built. The headers ask for C++17."""
    cmake = Path(sys.executable).parent / "cmake"
    if not (ROOT / "build/cpp/libfoca_cpu.a").exists() or not cmake.exists():
        pytest.skip("needs the build of `make test-cpp`")

    def run(*command):
        return subprocess.run(
            list(map(str, command)), check=True, capture_output=True, text=True
        ).stdout

    run(cmake, "--install", ROOT / "build/cpp", "--prefix", tmp_path / "foca")
    run(
        *(cmake, "-S", ROOT / "examples/cpp_engine", "-B", tmp_path / "build"),
        f"-DCMAKE_PREFIX_PATH={tmp_path / 'foca'}",
        *("-DCMAKE_CXX_STANDARD=14", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"),
    )
    assert "++14" not in (tmp_path / "build/compile_commands.json").read_text()
    run(cmake, "--build", tmp_path / "build")
    assert "12 of 50 steps computed" in run(tmp_path / "build/engine")
