# Everything a person runs by hand. `make` or `make help` lists it.
# demo and test do all the set-up on a machine that has python3 (3.11 or newer), make and git.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SOURCES := vsp_model pipeline jobs tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check chaos parity bench lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## create .venv with everything pinned in requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		f"python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

demo: $(STAMP) ## restore real faces and draw a before/after picture (FACES=folder for your own)
	$(BIN)/vsp demo $(if $(FACES),--faces "$(FACES)")

test: $(STAMP) ## the default tests, a few minutes on two cores
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -n 2 --no-loadscope-reorder

# One process a file: each full-size model gives its memory back before the next one is built. Two at
# a time, one thread each; what a file has to say comes when it is done.
test-slow: $(STAMP) ## full-size parity, faults, a cluster of three nodes, kill -9: many minutes
	@files=$$(grep -rl --include='test_*.py' 'mark\.slow' tests) || { echo 'no slow test found' >&2; exit 1; }; \
	printf '%s\n' $$files | OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 xargs -P 2 -I FILE sh -c \
		'told=$$($(BIN)/pytest -m "slow and not gpu" FILE 2>&1); code=$$?; printf "== FILE\\n%s\\n" "$$told"; \
			test $$code -eq 0 || echo "FAILED FILE" >&2; exit $$code'

check: $(STAMP) ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

chaos: $(STAMP) ## twenty random kill -9 over actors, driver and node; nothing may be lost
	$(BIN)/python tests/chaos.py --kills 20

parity: $(STAMP) ## every public parity vector, one line each
	$(BIN)/python tests/parity.py tests/parity_data/public

bench: $(STAMP) ## speed of the full model on this machine against the published way of computing
	$(BIN)/python benchmarks/network.py

lock: $(STAMP) ## pin requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra headless --universal \
		--python-version 3.11 --no-emit-index-url --no-header --quiet -o requirements.lock

clean: ## remove .venv, caches and the demo's output
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(wildcard $(SOURCES)) -name __pycache__ -type d -prune -exec rm -rf {} +
