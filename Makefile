# make demo   a finished sweep and an MLflow store to look at
# make test   everything that CI runs
# make test-all   the minutes-long checks too, and which lines no test has run

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all lint clean

demo: .venv/installed
	$(BIN)/python -m experiments sweep --config conf/quick.yaml --more 2

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations=30

test-all: .venv/installed-dev lint
	$(BIN)/python -m pytest --cov --cov-report=term

# Git reads no repository of another user unless it is told to, as when root runs the tests of somebody's clone.
lint: export GIT_CONFIG_COUNT := 1
lint: export GIT_CONFIG_KEY_0 := safe.directory
lint: export GIT_CONFIG_VALUE_0 := *
# pre-commit keeps its notes in the home folder, which some users lack.
lint: export PRE_COMMIT_HOME := $(CURDIR)/.venv/pre-commit
lint: .venv/installed-dev
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing into .venv (PyTorch is large: a few minutes)"
	$(PIP_INSTALL) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv runs
