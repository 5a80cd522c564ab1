# Works from a fresh clone: the first target that needs it builds .venv and installs etude there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: pytest runs one worker a core, and torch's own threads would fight over them.
# Compiled tests are kept whatever the shell says: to compile them anew takes each worker 15 seconds.
TEST_ENV := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test style types tests test-browser lint coverage house site format clean

help:  ## Show the targets.
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "etude needs Python 3.11 or newer, and $(PYTHON) is older or missing: run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	@touch $@

# Apart from the rest: only the benchmarks need these packages.
$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@touch $@

install: $(VENV)/.installed  ## Build .venv and install etude with its pinned libraries.

demo: $(VENV)/.installed  ## Train on MNIST-5k and print where everything is.
	$(BIN)/etude demo

lint: style types  ## Check style, format and types.

style: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/pyright

tests: $(VENV)/.installed
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST)

test: style  ## Check style and format, then types, and every test beside them, the slow ones too.
	@$(MAKE) --no-print-directory -j2 types tests

test-browser: $(VENV)/.installed  ## Open reports and the site of all runs in headless Chromium.
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		{ echo "there is no Chromium to open pages in: apt-get install chromium" >&2; exit 1; }
	$(TEST_ENV) $(BIN)/python -m pytest tests/browser

coverage: $(VENV)/.installed  ## Run every test with coverage: a report, and a failure below the floor in pyproject.toml.
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report term:skip-covered --cov-report html

house: $(VENV)/.installed  ## Print files, lines against each room's budget, import circles, and values passed through many calls.
	$(BIN)/python tests/house.py $(ARGS)

site: $(VENV)/.installed  ## Build the documentation into site/; a warning fails it.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.installed  ## Rewrite the code in the house format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-%: $(VENV)/.installed-bench  ## Run one benchmark: bench-small-images runs benchmarks/small_images.py.
	$(BIN)/python $(firstword $(wildcard benchmarks/$(subst -,_,$*)/__main__.py) benchmarks/$(subst -,_,$*).py) $(ARGS)

clean:  ## Remove .venv and the caches.
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist site
