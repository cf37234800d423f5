# make train   train the built-in example, from a fresh checkout to metrics and pictures
# make test    check format, lint and types, build the native code and run all tests
# Both create .venv on their first run and reuse it afterwards. They install the versions pinned in
# requirements/; `make test CONSTRAINTS=` installs the newest versions instead.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find csrc -type f 2>/dev/null)
PINNED := $(shell $(PYTHON) -c 'import sys; print("requirements/py%d%d.txt" % sys.version_info[:2])')
CONSTRAINTS ?= $(wildcard $(PINNED))
INSTALL := $(BIN)/python -m pip install --quiet --upgrade $(addprefix --constraint ,$(CONSTRAINTS))
STAMP := $(VENV)/installed-$(or $(basename $(notdir $(CONSTRAINTS))),newest)
BUILD_REQUIRES = $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')

.PHONY: train test coverage test-distributed aarch64 test-versions check format docs bench bench-compare experiments lock wheel clean
.DEFAULT_GOAL := test

train: $(STAMP)
	$(BIN)/maskformer train --config quickstart --output runs/quickstart --overwrite

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test: check
	$(PYTEST)

# All tests with line coverage, which must be at least 90 %. Before Python 3.12, measuring it makes
# the tests take half as long again.
coverage: check
	$(PYTEST) --cov --cov-report=term --cov-fail-under=90

# Test the CPU kernels for 64-bit ARM in an emulator; on Debian: apt install g++-aarch64-linux-gnu qemu-user
aarch64: $(STAMP)
	$(BIN)/python -m pytest tests/installation/test_aarch64.py

# Slow tests of distributed training: more processes than elsewhere, restarts by torchrun and, as
# root, two machines (simulated by network namespaces), one of which disappears.
test-distributed: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/model/distributed tests/model/commands

check: $(STAMP)
	@echo "== format, lint, types"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy
	PYTHONPATH=.:model $(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format -i

docs: $(STAMP)
	$(BIN)/python tools/recipe_page.py > docs/recipe.md
	$(BIN)/python tools/published_page.py > docs/results/published.md

bench: $(STAMP)
	$(INSTALL) --no-build-isolation --editable '.[bench]'
	@mkdir -p build
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-json build/bench.json

# Report benchmarks that became slower than in the committed run, by their speed-up over the plain path.
bench-compare: bench
	$(BIN)/python benchmarks/figures/compare.py build/bench.json

# Test the paper's claims on CamVid (docs/results/ablation.md); resumes after an interruption.
# EXPERIMENTS=--all runs every variant, EXPERIMENTS='--data FOLDER' replaces datasets/camvid.
experiments: $(STAMP)
	$(INSTALL) --no-build-isolation --editable '.[experiments]'
	$(BIN)/python tools/experiments $(EXPERIMENTS)

# The build requirements are installed first and the build uses them directly: an isolated build
# environment would download PyTorch a second time.
$(STAMP): pyproject.toml setup.py CMakeLists.txt $(CONSTRAINTS) $(NATIVE)
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version.split()[0]'
	@echo "== creating $(VENV) (the first time this downloads PyTorch, some GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "could not create a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@rm -f $(VENV)/installed-*
	$(INSTALL) $(BUILD_REQUIRES) torchvision
	@echo "== installing mfkernels (builds the native code)"
	$(INSTALL) --no-build-isolation --editable '.[test]'
	$(BIN)/python -m mfkernels
	@touch $@

# Pin the newest versions, except for PyTorch, whose release is set in requirements/torch.in.
lock: $(STAMP)
	$(INSTALL) uv
	for version in 3.11 3.12 3.13; do \
	  printf '%s\n' $(BUILD_REQUIRES) | $(BIN)/uv pip compile --quiet --upgrade pyproject.toml - \
	    --extra test --extra versions --extra release --constraint requirements/torch.in \
	    --python-version $$version --python-platform x86_64-manylinux_2_28 --annotation-style line \
	    --custom-compile-command 'make lock' --output-file requirements/py$${version%.*}$${version#*.}.txt \
	    || exit 1; \
	done

# Build one wheel for the lowest supported torch and all later ones. Its NumPy module is built for
# each of CPython 3.11, 3.12 and 3.13 that is on the PATH with its headers.
wheel: $(STAMP)
	$(INSTALL) nox uv
	$(BIN)/nox --session wheel

test-versions: $(STAMP)
	$(INSTALL) nox uv
	$(BIN)/nox

clean:
	rm -rf build dist .nox $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info mfkernels/*.so
