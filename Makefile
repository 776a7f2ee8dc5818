# Every target first sets up a virtual environment in .venv, with the tested versions in constraints.txt. For the oldest
# versions, use CONSTRAINTS=constraints-oldest.txt; for the latest ones, use CONSTRAINTS=.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
PINS = $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-slow check format docs docs-serve bench wheel clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 12

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"Python 3.11 or later is needed, but this is {v[0]}.{v[1]}: run make PYTHON=python3.11 ...")'
	@echo "Setting up $(VENV) (a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.[dev]' $(PINS)
	@touch $(READY)

demo: $(READY)  ## Train, evaluate and search on the built-in corpus
	$(BIN)/region-learner demo --output demo-output

test: $(READY)  ## Run the fast tests
	$(BIN)/python -m pytest -n 3 --dist loadfile

test-slow: $(READY)  ## Run all tests (downloads packages)
	$(PIP) --editable '.[dev,docs,engines]' $(PINS)
	$(BIN)/python -m pytest --slow

check: $(READY)  ## Check lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos
	$(BIN)/mypy

format: $(READY)  ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## Build the site into build/site
	$(PIP) --editable '.[docs]' $(PINS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: docs  ## Show the site on this machine, and follow changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench: $(READY)  ## Run the benchmarks, and print tables
	$(BIN)/python benchmarks/model.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/codebook.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/training.py --size small
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/feeding.py
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/speed.py --passes inference --frames 4 --batch 2 --models ours ours_no_regions plain clip
	$(BIN)/python benchmarks/embedding.py --clips 8

wheel: $(READY)  ## Build the wheel into dist/
	$(PIP) build
	rm -rf build/lib  # an earlier build's files would end up in the wheel
	$(BIN)/python -m build --wheel --outdir dist .

clean:  ## Remove the virtual environment and what tools left behind
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
