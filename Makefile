# `make demo` and `make test` need Python 3.11 or newer, make and pip; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-full lint format docs wheel bench gpu-wheels clean

# The programs of bench/, in this order; each prints ratios and writes bench/results/NAME.json.
# docs/performance.md is made from those files at the end.
BENCHES := decode precompute scale embed jpeg step data growth evaluate demo gpu

install: $(STAMP)

# pip compiles on one core; what compileall cannot compile are other Pythons' tests.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; call make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@$(BIN)/python -m compileall -q -q -j 0 -x '/tests?/' $(VENV)/lib || true
	touch $(STAMP)

demo: install
	$(BIN)/strive-cli demo

lint: install
	$(BIN)/ruff check strive recipes tests bench
	$(BIN)/ruff format --check strive recipes tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

# In the order of the files: the slow ones, of integration, first, so that none is left at the end.
test: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long and not gpu"

test-full: lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not gpu"

# The site of docs/, in site/; a link that leads nowhere ends it.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	touch $@

wheel: install
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

bench: $(VENV)/.bench
	for name in $(BENCHES); do $(BIN)/python -m bench.$$name || exit 1; done
	$(BIN)/python -m bench.performance

$(VENV)/.bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,bench]"
	touch $@

# What a GPU machine without a network is given: docs/gpu.md.
gpu-wheels: install
	$(BIN)/python -m bench.gpu_bundle

format: install
	$(BIN)/ruff check --fix strive recipes tests bench
	$(BIN)/ruff format strive recipes tests bench

clean:
	rm -rf $(VENV) strive-workspace site dist
