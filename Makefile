# Four words: `make repro` runs the pipeline, `make test` the tests, `make check` ruff and mypy, `make setup` only installs.
# PYTHON=python3.12 picks another interpreter. TORCH_ARGS goes to pip for torch alone: without a GPU give it the index
# of PyTorch's CPU builds (README), else pip brings CUDA along.
PYTHON ?= python3
TORCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# DVC runs `python -m pipeline`, which must mean this environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: setup repro test check
setup: $(VENV)/.ready

# Installed again only when the list of packages changes; torch first, so that nothing else chooses its build.
$(VENV)/.ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		{ echo "sidpipe needs Python 3.11 or 3.12: make setup PYTHON=python3.12"; exit 1; }
	@echo "Installing the packages of constraints.txt into $(VENV); this takes some minutes, once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH_ARGS) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,dev]'
	touch $@

repro: setup
	@git rev-parse --verify --quiet HEAD > /dev/null || { echo "This folder is no git repository with a commit," \
		"which DVC needs: git init && git add -A && git commit -m start"; exit 1; }
	dvc repro

# One process per core; a file's tests stay together, because they share what was costly to make.
test: setup
	pytest -n auto --maxprocesses 8 --dist loadfile

check: setup
	ruff check .
	ruff format --check .
	mypy
