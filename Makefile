# Two commands do everything: `make repro` (environment, then the whole pipeline) and `make test`.

PROFILE ?= embedded
PYTHON ?= python3
VENV ?= .venv
SHELL := /bin/bash
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed

# Stage commands find `python` on the PATH; compiled imports start stages two to three times faster.
export PATH := $(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
unexport PYTHONDONTWRITEBYTECODE
EXECUTION = $(PROFILE)-$$(date -u +%Y%m%dT%H%M%SZ)

.PHONY: help env profile repro smoke test lint types check track ui assets clean

help: ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | column -t -s "$$(printf '\t')"

env: $(STAMP) ## create the environment in .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if command -v uv > /dev/null; then \
	  uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[dev]'; \
	else \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@git rev-parse --git-dir > /dev/null 2>&1 || $(BIN)/dvc config --local core.no_scm true
	@touch $(STAMP)

profile: $(STAMP) ## write params.yaml for PROFILE (DATA=folder of images, FORCE=1 to discard own edits)
	@$(BIN)/python -m stages.profile $(PROFILE) $(if $(DATA),--data $(DATA)) $(if $(FORCE),--force)

repro: profile ## run the whole pipeline with PROFILE (embedded), ending in a report (JOBS=datasets at once)
	@TIRAMISU_EXECUTION=$(EXECUTION) $(BIN)/python -m stages.repro $(if $(JOBS),--jobs $(JOBS))
	@$(BIN)/python -m stages.track || echo "MLflow was not brought up to date; the records on disk are complete."
	@echo "Report: $(abspath reports/$(PROFILE)/index.html)"

smoke: ## run the whole pipeline in minutes with the smoke profile
	@$(MAKE) --no-print-directory repro PROFILE=smoke

test: $(STAMP) ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(STAMP) ## check style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP) ## check types
	@$(BIN)/mypy

check: lint types test ## everything before a commit

track: $(STAMP) ## bring MLflow up to date with the records on disk
	@$(BIN)/python -m stages.track

ui: track ## open MLflow's pages on this machine
	@$(BIN)/python -m stages.ui

assets: $(STAMP) ## put the models of the embedded-long profile into assets/
	@$(BIN)/python -m stages.export_assets --profile embedded-long

clean: ## delete outputs, caches and the work folder, not the environment
	rm -rf runs reports work .dvc/cache .dvc/tmp mlflow.db mlartifacts
