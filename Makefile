# One command each, from a fresh clone: every target sets up what it needs.
PYTHON ?= python3
MXNET_BASE_PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
# a file's tests in one process, so that they share its trainings; the long files come first (tests/conftest.py)
TWO_PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo test test-quick test-slow lint test-mxnet bench docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

$(VENV)/.run-time: requirements.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run-time
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python tests/support/unpaired_torchvision.py
	touch $@

.venv-mxnet/.done: requirements-mxnet.txt
	$(MXNET_BASE_PYTHON) -m venv .venv-mxnet
	.venv-mxnet/bin/python -m pip install --quiet -r requirements-mxnet.txt
	touch $@

setup: $(VENV)/.run-time  ## install what running needs into .venv

setup-dev: $(VENV)/.dev  ## install what tests and lint need too

demo: $(VENV)/.run-time  ## draw synthetic faces, convert, train a small network on the CPU, evaluate
	$(BIN)/python -m adaface.demo.dataset --output $(DEMO)/faces
	$(BIN)/python convert.py --rec_path $(DEMO)/faces
	$(BIN)/python main.py --config recipes/demo_cpu.yaml --data_root $(DEMO)
	$(BIN)/python -m adaface.commands.demo_baseline $(DEMO)/faces --runs experiments

test: $(VENV)/.dev  ## run the tests (two processes, no GPU, no network)
	$(BIN)/python -m pytest $(TWO_PROCESSES) -m "not slow and not mxnet"

test-quick: $(VENV)/.dev  ## run what takes a minute and a half: no training, no processes
	$(BIN)/python -m pytest $(TWO_PROCESSES) -m "not slow and not mxnet and not long"

test-slow: $(VENV)/.dev  ## run the tests that take minutes each
	$(BIN)/python -m pytest -m slow

test-mxnet: $(VENV)/.dev .venv-mxnet/.done  ## let the real mxnet read what we write, and write what we read
	MXNET_PYTHON=.venv-mxnet/bin/python $(BIN)/python -m pytest -m mxnet

lint: $(VENV)/.dev  ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .

bench: $(VENV)/.dev  ## measure every claim about speed against a plain implementation (an idle machine, please)
	$(BIN)/python -m bench

docs: $(VENV)/.dev  ## build the documentation into site/; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove what `make` installed and the demo wrote
	rm -rf $(VENV) .venv-mxnet $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis site
