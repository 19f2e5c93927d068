# `make` lists the targets. `make demo` needs nothing but Python >= 3.11 and a network for pip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed
# Installed first and by itself, so that a CPU or CUDA build of one's choice stays: the lock takes any build of
# this version. For example: make install TORCH_FROM="--index-url <a PyTorch index>"
TORCH := torch==2.13.0
TORCH_FROM ?=
RUN ?= examples/quickstart.yaml
SKIPPED := build/skipped.txt
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} SKIPPED=$(SKIPPED) $(BIN)/python -m pytest -q --dist loadfile
TEST_ASSETS := minilm-l6 bert-tiny movies tweets qa

export MLFLOW_DISABLE_TELEMETRY ?= true
export RAY_USAGE_STATS_ENABLED ?= 0

.DEFAULT_GOAL := help
.PHONY: help install demo test soak docs-check lint format types lock ui clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## Create .venv and install everything in it (PYTHON=python3.11 to choose)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; try make PYTHON=python3.11 ...")'
	@echo "installing into $(VENV) (minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install $(TORCH) $(TORCH_FROM)
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## Distil the quickstart (RUN=examples/NAME.yaml: another example), data and weights included
	$(BIN)/python examples/fetch_assets.py $(RUN)
	$(BIN)/tutelage train $(RUN)

# One thread a process: the tests start many. Training outside tests sets its own threads. Those that start Ray run two
# files at a time: each starts a dozen processes. The last line names what was skipped, and what enables it.
test: install lint types ## Everything that must pass: lint, types, tests
	$(BIN)/python examples/fetch_assets.py $(TEST_ASSETS)
	@rm -f $(SKIPPED)
	$(PYTEST) -n auto --maxprocesses 4 tests/unit tests/golden
	$(PYTEST) -n 2 tests/integration
	@$(BIN)/python tests/skipped.py $(SKIPPED)

soak: install ## Kill processes of runs and searches 200 times (SOAK=n: another number); hours
	SOAK=$(or $(SOAK),200) $(PYTEST) -n 0 -s tests/integration/test_soak.py

docs-check: install ## Run every example of README and docs/, on tiny models and data
	$(PYTEST) -n 0 tests/docs

lint: install ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: install ## Mend style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: install ## Check types
	$(BIN)/mypy

lock: ## Resolve all dependencies anew into requirements.lock (PYTHON=python3.11; minutes)
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/pip install --quiet $(TORCH) $(TORCH_FROM)
	@build/lock/bin/pip install --quiet -e '.[dev,lora,onnx,postgres,speech]'
	@build/lock/bin/pip check
	@{ echo "# All that Tutelage, its tests, its ONNX export and its PostgreSQL server need, at the versions tested together (Python 3.11, Linux)."; \
	   echo "# Made by 'make lock', which resolves anew; do not edit. 'make install' installs it."; \
	   echo "# torch has no build suffix, so that a CPU or a CUDA build, installed first, stays; what a CUDA build needs,"; \
	   echo "# it brings itself. No line is bound to one platform; other Pythons >= 3.11 may add packages of their own."; \
	   build/lock/bin/pip freeze --all --exclude tutelage --exclude pip --exclude wheel \
	   | sed -E '/^(nvidia-|cuda-|triton==)/d; s/^(torch==[0-9.]+)\+.*/\1/'; } > build/requirements.lock
	@mv build/requirements.lock requirements.lock && rm -rf build/lock
	@echo "requirements.lock: $$(grep -c "^[A-Za-z].*==" requirements.lock) packages"

ui: install ## Open MLflow on the demo's runs, on this machine only
	$(BIN)/tutelage ui $(RUN)

clean: ## Remove caches and build products (keeps .venv, runs/ and fetched assets)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
