# Everything a developer runs. Each target installs what it needs into .venv first, from the Python registry only.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
EXTENDED := $(VENV)/.extended
# Many tests wait for processes, so more workers than cores pay; WORKERS=0 runs everything in one process.
WORKERS := 4
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test deep extended lint types bench bench-fleet golden clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("cmf-sync needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	touch $(STAMP)

demo: $(STAMP)   ## three clinics, one core, one hub: the whole way, on real data
	$(BIN)/python deploy/examples/clinics/demo.py

test: $(STAMP)   ## the tests, in under ten minutes on two cores
	$(PYTEST)

deep: $(STAMP)   ## the same tests with many more rounds and examples
	$(PYTEST) --deep

$(EXTENDED): $(STAMP)
	$(BIN)/python -m pip install --quiet --group extended
	touch $(EXTENDED)

extended: $(EXTENDED) ## the tests that need more than that: network namespaces, sshd, S3, Ray (iproute2, openssh-server, root)
	$(BIN)/python -m pytest --extended -m extended

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)  ## speed, each figure beside its floor
	$(BIN)/python -m tests.bench

bench-fleet: $(STAMP) ## 500 sites come back at once to one hub: several minutes
	$(BIN)/python -m tests.bench.fleet

golden: $(STAMP) ## verifies the golden files; `--write` only adds new ones
	$(BIN)/python -m tests.golden.generate

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
