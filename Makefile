# Everything a developer runs. Each target installs what it needs into .venv first, from the Python registry only.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: demo test deep lint types bench golden clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("cmf-sync needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	touch $(STAMP)

demo: $(STAMP)   ## three clinics, one core, one hub: the whole way, on real data
	$(BIN)/python deploy/examples/clinics/demo.py

test: $(STAMP)   ## the tests, in under ten minutes on two cores
	$(BIN)/python -m pytest

deep: $(STAMP)   ## the same tests with many more rounds and examples
	$(BIN)/python -m pytest --deep

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)  ## speed, each figure beside its floor
	$(BIN)/python -m tests.bench

golden: $(STAMP) ## verifies the golden files; `--write` only adds new ones
	$(BIN)/python -m tests.golden.generate

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
