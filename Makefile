# pdevis: `make chat` talks to a model, `make test` runs the suite. Both need nothing but Python and make.
# Settings: PYTHON (interpreter that creates the environment), VENV (folder of the environment), CONSTRAINTS (file of
#           pinned versions; empty: newest versions), ARGS (flags of chat and bench), JOBS (test processes), PYTEST_ARGS.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
JOBS ?= 2
PYTEST_ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
PINS := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
# The models of the tests are tiny: more than one thread makes them slower.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help chat model install test test-all bench gpu lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

chat: model ## talk to the embedded model in the terminal (ARGS="..." for its flags)
	@$(PY) appInference.py $(ARGS)

model: $(READY) ## fetch and convert the embedded model
	@$(PY) -m pdevis.loading.embedded

install: $(READY) ## create the environment and install pdevis into it

test: $(READY_DEV) ## run the tests, without the slow ones
	@$(TEST_ENV) $(PY) -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-all: $(READY_DEV) ## run all tests
	@$(TEST_ENV) $(PY) -m pytest -n $(JOBS) --dist loadfile -m "slow or not slow" $(PYTEST_ARGS)

bench: model ## time the parts of a round one by one (ARGS="..." for its flags)
	@$(PY) tools/bench_round.py $(ARGS)

gpu: $(READY_DEV) model ## measure everything on a GPU, in nine minutes: results/gpu.json, a table, a plot
	@$(PY) evaluation/gpu/evaluate_gpu.py --output results/gpu.json --resume $(ARGS); code=$$?; \
	test ! -e results/gpu.json || $(PY) summary/gpu/summary_gpu.py --input results/gpu.json \
		--output results/gpu_summary.json --plot results/gpu.png; exit $$code

lint: $(READY_DEV) ## check style and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: $(READY_DEV) ## fix style and formatting
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean: ## remove the environment and the caches of the tools (the model cache stays)
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.txt pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "make: $(PYTHON) not found: install Python 3.10 or newer, or make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "make: $(PYTHON) is older than Python 3.10: make PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) lacks venv: install your system's python3-venv package" >&2; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(PINS) -r requirements.txt
	@touch $@

$(READY_DEV): $(READY)
	$(PIP) install $(PINS) -e '.[dev]'
	@touch $@
