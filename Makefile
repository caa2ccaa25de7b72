# `make repro` runs the pipeline and `make test` the tests; a user needs no more. `make setup` only installs.
# For developers: `make check` (lint, format, types, spelling), `make format`, `make test-long` (what takes minutes: the
# README's commands, the tutorial, the docs, coverage), `make coverage`, `make docs` (the site, into site/) and
# `make results` (docs/results.md from its rows) and `make torture` (docs/reliability.md). `.ci/run` calls check, test and
# test-long.
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
# mkdocs-material announces its successor at each build.
export NO_MKDOCS_2_WARNING := 1
# One process per core; a file's tests stay together, because they share what was costly to make. Files run in the order
# of tests/conftest.py, long ones first, and not in that of their numbers of tests.
PYTEST := pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: setup setup-docs repro test test-long coverage check format docs results torture
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

# What builds the site comes apart, so that a user's setup does not wait for it.
setup-docs: $(VENV)/.docs-ready

$(VENV)/.docs-ready: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

repro: setup
	@git rev-parse --verify --quiet HEAD > /dev/null || { echo "This folder is no git repository with a commit," \
		"which DVC needs: git init && git add -A && git commit -m start"; exit 1; }
	dvc repro

test: setup
	$(PYTEST)

test-long: setup setup-docs coverage
	$(PYTEST) -m long

# The floor stands in pyproject.toml. Tests that start other processes (slow) would measure nothing here.
coverage: setup
	$(PYTEST) -q -m "not long and not slow" --cov --cov-report=term:skip-covered --no-cov-on-fail

check: setup
	ruff check .
	ruff format --check .
	mypy
	codespell

format: setup
	ruff check --fix .
	ruff format .

docs: setup setup-docs
	mkdocs build --strict --quiet
	@echo "The site is site/index.html."

results: setup
	python -m benchmarks.results

# Signals, full disks, odd values, damaged files, hostile servers. TIME is in hours; another call goes on.
torture: setup
	python -m benchmarks.torture --hours $(or $(TIME),2)
