# `make demo` and `make test` are all a newcomer needs; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
export PATH := $(CURDIR)/.venv/bin:$(PATH)  # cmake and ninja come from there
BUILD_INPUTS := pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard csrc/*)

.PHONY: setup demo test test-full lint bench clean
setup: .venv/ready

.venv/tools: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch setuptools cmake ninja pybind11
	touch $@

.venv/ready: .venv/tools $(BUILD_INPUTS)
	$(INSTALL) --no-build-isolation --editable .
	touch $@

.venv/ready-test: .venv/ready
	$(INSTALL) --no-build-isolation --editable ".[test]"
	touch $@

demo: setup  ## train, prune, fine-tune, deploy and time a network on real images; ends with a page to look at
	rm -rf runs/demo
	$(BIN)/slimfast run recipes/demo.toml --out runs/demo

test: .venv/ready-test  ## the quick tests
	$(BIN)/pytest -n 2 -m "not long"

test-full: .venv/ready-test  ## the tests that take minutes
	$(BIN)/pytest -n 2 -m long

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready-test  ## every kernel against every alternative, in one run
	mkdir -p runs
	$(BIN)/pytest bench --benchmark-only --benchmark-json runs/bench.json
	$(BIN)/python bench/report.py runs/bench.json --charts runs/bench

clean:
	rm -rf .venv build runs slimfast/_lib *.egg-info
