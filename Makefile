# `make help` lists the targets. All of them set up the environment first; that does nothing when it is up to date.

SHELL := bash
VENV ?= .venv
BIN := $(VENV)/bin
GOLDEN_DIR ?= tests/golden/vectors
# Small tensors on few cores: more threads only get in each other's way.
export OMP_NUM_THREADS ?= 1
export VENV PYTHON TORCH EXTRAS

.PHONY: help setup demo lab test test-slow check format golden bench
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: ## make the environment; PYTHON=..., TORCH='any pip arguments' or TORCH=system, EXTRAS='data dev', VENV=...
	@bash requirements/install.sh

demo: setup ## train a tiny model and sample a video
	$(BIN)/python scripts/demo.py $(ARGS)

lab: setup ## train tiny models in a generated world and judge them, ARGS='--scale 10' on a GPU
	$(BIN)/python scripts/lab.py $(or $(ARGS),--scale 0.1 --folder outputs/lab_short)

test: setup ## the fast tests, ARGS='tests/models -k name'
	$(BIN)/python -m pytest -q --durations=10 -n 2 --dist loadfile $(ARGS)

test-slow: setup ## the slow tests
	$(BIN)/python -m pytest -q --durations=10 -m slow -n 2 --dist loadfile $(ARGS) || { code=$$?; test $$code -eq 5; }

check: setup ## lint, format, and the rules of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_style.py tests/test_docs.py

format: setup ## rewrite what `make check` would complain about, as far as that is possible
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/tree.py

golden: setup ## compare with the vectors of the reference in GOLDEN_DIR
	$(BIN)/python tests/golden/run.py $(GOLDEN_DIR) $(ARGS)

bench: setup ## measure speed and memory
	@test -d benchmarks || { echo 'benchmarks: not in this version yet'; exit 1; }
	$(BIN)/python -m benchmarks $(ARGS)
