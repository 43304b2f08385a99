# `make demo` and `make test` need Python 3.11 or newer, make and pip; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-full lint format clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; call make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: install
	$(BIN)/strive-cli demo

lint: install
	$(BIN)/ruff check strive tests
	$(BIN)/ruff format --check strive tests
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -m "not long and not gpu"

test-full: lint
	$(BIN)/pytest -m "not gpu"

format: install
	$(BIN)/ruff check --fix strive tests
	$(BIN)/ruff format strive tests

clean:
	rm -rf $(VENV) strive-workspace
