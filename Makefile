# Every target sets up what it needs in .venv first; an environment that is up to date costs a second.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
ARGS ?=
export JOBS TORCH_INDEX

.PHONY: help env demo test lint docs

help:
	@echo 'make env   set up .venv (Python 3.11, CPU); about 15 minutes the first time, mostly compiling mmcv'
	@echo 'make demo  upgrade a detector on generated data: accuracy, time and pictures before and after'
	@echo 'make test  the default tests (ARGS="-k compat" for some of them, ARGS=--cov for coverage)'
	@echo 'make lint  formatting, docstrings, import rules, types and the documentation build'
	@echo 'make docs  the documentation, to docs/_build/html'

env:
	@$(PYTHON) scripts/make_env.py

demo: env
	@$(BIN)/python -m mmprune3d demo $(ARGS)

# One thread per process: the models are tiny, and results do not depend on the machine.
test: env
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile $(ARGS)

lint: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy
	@$(MAKE) --no-print-directory docs

docs: env
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
