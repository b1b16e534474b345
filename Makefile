# One command runs the demonstration, one the tests. Both make .venv and build first, if that is not
# done yet, and need nothing before them but Python 3.11+, a C++ compiler and pip.
#
#   make demo   sample garments with and without the cache: a table, and demo.png
#   make test   the tests (make test-slow: those that take minutes or gigabytes)
#   make help   everything else
#
# Variables:
#   TORCH="torch==2.11.0 --index-url ..."  another build of torch, with pip's own options
#   PYTHON=python3.12                      another Python
#   FOCA_BUILD_CUDA, FOCA_CUDA_ARCHS, FOCA_CPU_ISAS   see CONTRIBUTING.md, "Building"

PYTHON ?= python3
TORCH ?= torch==2.13.0
PEERS := cache-dit==1.5.3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py CMakeLists.txt pyproject.toml $(shell find csrc -type f)
# libgomp's spinning threads turn a millisecond into eight on a busy machine; benchmarks decide alone.
test test-slow lint: export OMP_WAIT_POLICY := PASSIVE

# Build for the GPU that is here, or for none. FOCA_BUILD_CUDA=1 builds without looking.
GPU_ARCHS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -u | paste -sd';')
FOCA_BUILD_CUDA ?= $(if $(GPU_ARCHS),,0)
FOCA_CUDA_ARCHS ?= $(GPU_ARCHS)
# Of the CPU kernels only those that this machine uses; test-cpp builds and tests all.
FOCA_CPU_ISAS ?= native
BUILD_ENV := FOCA_CPU_ISAS="$(FOCA_CPU_ISAS)" $(if $(FOCA_BUILD_CUDA),FOCA_BUILD_CUDA=$(FOCA_BUILD_CUDA)) \
	$(if $(FOCA_CUDA_ARCHS),FOCA_CUDA_ARCHS="$(FOCA_CUDA_ARCHS)")

.PHONY: help demo test test-cpp test-slow lint format bench bench-gpu wheel clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,/^$$/p'
	@echo "Targets: demo test test-cpp test-slow lint format bench bench-gpu wheel clean"

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: expected Python 3.11 or newer, got $$($(PYTHON) --version): set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

BUILD := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet \
	--disable-pip-version-check --no-build-isolation --no-deps --editable .

$(VENV)/built: $(VENV)/installed $(SOURCES)
	$(BUILD_ENV) $(BUILD)
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed requirements-test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

# The tests also read the machine code of the CUDA kernels, where something can compile them.
FOR_TESTS := $(if $(GPU_ARCHS),,$(if $(shell command -v nvcc || true),FOCA_BUILD_CUDA=1 FOCA_CUDA_ARCHS=90))
$(VENV)/built-for-tests: $(VENV)/built $(VENV)/installed-for-tests
	$(if $(FOR_TESTS),$(BUILD_ENV) $(FOR_TESTS) $(BUILD))
	@touch $@

demo: $(VENV)/built
	$(BIN)/foca-dit demo --out demo.png

test: $(VENV)/built-for-tests test-cpp
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=90 --support-matrix check

# The torch-free part, as a C++ engine builds it.
test-cpp: $(VENV)/installed
	@$(BIN)/cmake -S . -B build/cpp -G Ninja -DCMAKE_MAKE_PROGRAM="$(CURDIR)/$(BIN)/ninja" \
	  -DFOCA_BUILD_TESTS=ON > /dev/null
	@$(BIN)/cmake --build build/cpp > /dev/null
	$(BIN)/ctest --test-dir build/cpp --parallel 2 --output-on-failure --quiet

test-slow: $(VENV)/built-for-tests
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/built $(VENV)/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')
	$(BIN)/mypy

format: $(VENV)/installed-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')

# What the kernels are held against, beside torch and diffusers.
$(VENV)/peers: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PEERS) -c requirements-test.txt
	@touch $@

bench: $(VENV)/built $(VENV)/peers
	$(BIN)/python benchmarks/ops.py
	$(BIN)/python benchmarks/ops.py --threads 1 ratios
	MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_MMAP_THRESHOLD_=8589934592 \
	  $(BIN)/python benchmarks/ops.py calibrators
	$(BIN)/python benchmarks/skip.py
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python benchmarks/report.py

# PARTS="ops skip" measures these alone; QUICK=1 tests and measures in three minutes, after the build.
bench-gpu: $(VENV)/built $(VENV)/peers
	$(BIN)/python benchmarks/gpu_suite.py $(if $(QUICK),--quick) $(PARTS:%=--part %)
	$(BIN)/python benchmarks/plots.py
	$(BIN)/python benchmarks/report.py

wheel: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -w dist .

clean:
	rm -rf build dist $(VENV) *.egg-info foca_kernels/*.so
