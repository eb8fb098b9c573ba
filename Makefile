# Needs make and Python >= 3.11 (another one: make PYTHON=python3.12 test). Everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: test bench peers lint format clean

# A file's tests stay together, since they share what its fixtures start
test: $(VENV)/.installed-test  ## run all tests; ARGS="-k resume" picks
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=8 --dist=loadfile $(ARGS)

bench: $(VENV)/.installed-bench  ## measure on this machine; ARGS="--help" shows the options
	$(BIN)/python -m benchmarks $(ARGS)

peers:  ## install the rivals that benchmarks.parquet and benchmarks.tar measure with --peers, into an environment of their own
	$(MAKE) VENV=.venv-peers .venv-peers/.installed-peers

lint: $(VENV)/.installed-test  ## style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .venv-peers build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*

# One stamp per extra, so that a second `make` installs nothing, and a change of what is required installs again.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "headrace needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	@echo "Installing into $(VENV); torch is large, so the first time takes minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	@touch $@
