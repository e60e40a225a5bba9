# Each target does all of its own set-up: the virtual environment, the dependencies, the project.
# PYTHON is the interpreter that the environment is made with; it needs version 3.11 or later.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Many tests wait for processes and servers, so two at a time fit two cores well; a file's tests stay together, and the
# longest files come first.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup check test soak horovod demo demo-text clean

help:
	@echo "make check      lint, types and the fast tests (about a minute)"
	@echo "make test       every test"
	@echo "make soak       200,000 batches while everything around them fails (some minutes)"
	@echo "make horovod    build Horovod, and the tests with it (some minutes the first time)"
	@echo "make demo       handwritten digits: pack, inspect, train on two processes through a crash, report"
	@echo "make demo-text  a byte-level transformer on the standard library's sources"

# The stamp is as new as what it was made from, so a second run starts at once.
$(VENV)/.done: pyproject.toml constraints.txt tests/peers.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/peers.txt
	@touch $@

setup: $(VENV)/.done

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) -q -m "not slow"

test: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST)

soak: setup
	SOAK_BATCHES=200000 $(BIN)/pytest -q -m soak tests/faults

horovod: setup
	BUILD_HOROVOD=1 $(BIN)/pytest -q -ra tests/train/test_horovod.py

demo: setup
	$(BIN)/python recipes/demo.py

demo-text: setup
	$(BIN)/python recipes/demo.py text

clean:
	rm -rf $(VENV) data runs
