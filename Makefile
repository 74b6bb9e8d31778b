# `make quickstart` and `make test` need Python >= 3.10 and a C++17 compiler; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/quickstart

.PHONY: help quickstart test lint sanitize bench gpu-check clean

help:
	@echo "make quickstart  train a small routed network without and with a budget, print what was saved, write a report"
	@echo "make test        build, lint and run all tests"
	@echo "make lint        ruff, mypy"
	@echo "make bench       operators and networks against what else runs them on this machine (BENCH=--quick for a look)"
	@echo "make gpu-check   on a machine with a GPU, in stages of minutes: build, parity, sanitize, speed, train, triton, compile (GPU="speed --quick")"
	@echo "make sanitize    the operators' tests on a library built with AddressSanitizer and UBSan, in build/sanitize"

# The stamps keep a second `make` from installing again; the native library is rebuilt when a source changed.
$(VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 13), "Python 3.10 to 3.13 is needed (PYTHON=python3.13 names one), this is " + sys.version.split()[0]'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.built: $(VENV)/.installed setup.py CMakeLists.txt pyproject.toml $(shell find csrc -type f 2>/dev/null)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

quickstart: $(VENV)/.built
	$(BIN)/python -m dynroute.quickstart --out $(RUN)

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sanitize: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/csrc/sanitize.py $(SANITIZE)

$(VENV)/.bench-installed: $(VENV)/.installed requirements-bench.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	touch $@

bench: $(VENV)/.built $(VENV)/.bench-installed
	$(BIN)/python -m benchmarks $(BENCH)

# No virtual environment: the torch that is there, and nothing installed or downloaded.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check $(GPU)

clean:
	rm -rf $(VENV) build dynroute/lib *.egg-info
