# Every target makes .venv by itself, once; it is made anew when pyproject.toml changes.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SUFFIXES:

PYTHON ?= python3
SUITE ?= glue
METHOD ?= qgoft
TASKS ?=
SEEDS ?=
PROTOCOL ?= pocket
MODEL ?=
DATA ?=
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
LAUNCHER ?=
NPROC ?= 1
ACCELERATE ?=
RECORDS ?= runs
TORCH_INDEX ?=
FAILFAST ?=
BENCH ?= cpu
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
RUN_SUITE = $(PY) scripts/suite.py $(1) --method '$(METHOD)' --tasks '$(TASKS)' --seeds '$(SEEDS)' --protocol '$(PROTOCOL)' --model '$(MODEL)' \
	--data '$(DATA)' --jobs $(JOBS) --launcher '$(LAUNCHER)' --nproc $(NPROC) --accelerate '$(ACCELERATE)' --records '$(RECORDS)' $(if $(FAILFAST),--failfast)
# The libraries must not look for a GPU's tokenizer threads or a hub that the embedded protocol does not need.
export TOKENIZERS_PARALLELISM := false

$(READY): pyproject.toml
	@echo "making $(VENV) (once, about two minutes and 2 GB)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qgoft: Python 3.11 or later is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(PY) -m pip install --quiet --index-url $(TORCH_INDEX) "$$($(PYTHON) scripts/torch_pin.py)")
	@$(PY) -m pip install --quiet --editable '.[dev]'
	@touch $@

# On Linux the GPU kernels are tested in Triton's interpreter, with or without a GPU. Elsewhere their tests are skipped.
$(VENV)/.triton: $(READY)
	@test "$$(uname -s)" != Linux || { echo "adding triton for the tests of the GPU kernels (once, 1 GB)"; $(PY) -m pip install --quiet --editable '.[triton]'; }
	@touch $@

# Real decoders are scored on MMLU by lm-eval.
$(VENV)/.mmlu: $(READY)
	@echo "adding lm-eval (once)"; $(PY) -m pip install --quiet --editable '.[mmlu]'
	@touch $@

.PHONY: env glue squad vtab vicuna mmlu math commonsense table1 table2 table3 table4 psoft-table2 psoft-table4 psoft-table5 test check smoke bench counts status fetch clean help

env: $(READY) ## make .venv, and nothing else

glue: $(READY) ## main job: fine-tune and evaluate METHOD on GLUE, print the table beside the published one
	@$(call RUN_SUITE,glue) $(ARGS)

squad: $(READY) ## fine-tune and evaluate METHOD on SQuAD v1.1, print EM and F1 beside the published ones
	@$(call RUN_SUITE,squad) $(ARGS)

vtab: $(READY) ## fine-tune and evaluate METHOD on VTAB-1K's nineteen tasks (TASKS=dtd,svhn for some)
	@$(call RUN_SUITE,vtab) $(ARGS)

vicuna: $(READY) ## tune METHOD on instructions, answer the questions of Vicuna-Eval, have the answers judged, compare the methods
	@$(call RUN_SUITE,instruct) --tasks vicuna $(ARGS)

mmlu: $(READY) $(if $(filter-out pocket,$(PROTOCOL)),$(VENV)/.mmlu) ## tune METHOD on instructions and score it on MMLU, with and without five examples
	@$(call RUN_SUITE,instruct) --tasks mmlu $(ARGS)

math: $(READY) ## tune METHOD on MetaMathQA and score it on GSM8K and MATH (TASKS=gsm8k for one)
	@$(call RUN_SUITE,math) $(ARGS)

commonsense: $(READY) ## tune METHOD on Commonsense-15K and score it on the eight test sets
	@$(call RUN_SUITE,commonsense) $(ARGS)

table1: $(READY) ## table 1 of GOFT with the protocol's seeds (METHOD is a list of its rows)
	@$(call RUN_SUITE,glue) --all-seeds $(ARGS)

table2: $(READY) $(if $(filter-out pocket,$(PROTOCOL)),$(VENV)/.mmlu) ## table 2 of GOFT, MMLU and Vicuna-Eval, with the protocol's seeds (METHOD is a list of its rows)
	@$(call RUN_SUITE,instruct) --tasks mmlu,vicuna --all-seeds $(ARGS)

table3: $(READY) ## table 3 of GOFT, VTAB-1K, with the protocol's seeds (METHOD is a list of its rows)
	@$(call RUN_SUITE,vtab) --all-seeds $(ARGS)

table4: $(READY) ## table 4 of GOFT, SQuAD, with the protocol's seeds (METHOD is a list of its rows)
	@$(call RUN_SUITE,squad) --all-seeds $(ARGS)

psoft-table2: PROTOCOL := psoft_iclr26
psoft-table2: METHOD := full,goft_v2,qgoft_v2,boft,oft_v2,lora,pissa,dora,lora_xs,psoft,goft,qgoft
psoft-table2: $(READY) ## table 2 of PSOFT with its protocol and seeds
	@$(call RUN_SUITE,glue) --all-seeds $(ARGS)

psoft-table4: $(READY) ## table 4 of PSOFT, mathematics, with the protocol's seeds (METHOD is a list of its rows)
	@$(call RUN_SUITE,math) --all-seeds $(ARGS)

psoft-table5: $(READY) ## table 5 of PSOFT, commonsense, with the protocol's seeds (METHOD is a list of its rows)
	@$(call RUN_SUITE,commonsense) --all-seeds $(ARGS)

test: $(READY) $(VENV)/.triton ## everything that a CPU can check, in ten minutes on two cores
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -q

check: $(READY) ## style, types and the fast tests, in two minutes
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -q -m "not slow"

smoke: $(READY) ## a tiny run through to a table cell, in a minute
	@$(PY) scripts/suite.py glue --tasks cola --protocol pocket train.max_steps=4 train.evaluations=1 results.root=results/smoke

bench: $(READY) ## time and memory against LoRA, every rival in one run, half an hour (BENCH=paper: the papers' shapes, on a GPU)
	@$(PY) scripts/bench.py --set $(BENCH) $(ARGS)

counts: $(READY) ## trainable parameters of every method on the papers' shapes, beside the published counts
	@$(PY) scripts/counts.py

status: $(READY) ## what is done of a planned sweep (SUITE, METHOD, TASKS, SEEDS, PROTOCOL)
	@$(call RUN_SUITE,$(SUITE)) --action status $(ARGS)

fetch: $(READY) ## download data and weights of SUITE and PROTOCOL once, for machines without a network (HF_HUB_OFFLINE=1)
	@$(call RUN_SUITE,$(SUITE)) --action fetch $(ARGS)

clean: ## remove .venv, caches and generated tables; keeps results/runs
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache results/tables results/figures results/bench results/multirun results/smoke *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@echo "usage: make TARGET [NAME=value ...]"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  \1\t/' | expand -t 18
	@echo
	@echo "names and defaults: SUITE=glue (of status and fetch)  METHOD=qgoft (list; lora@r2 for a variant)  TASKS= (list, all)  SEEDS= (list, 0)  PROTOCOL=pocket"
	@echo "  MODEL= DATA= (directory instead of the hub)  JOBS=cores  LAUNCHER=basic|joblib|submitit_local|submitit_slurm  NPROC=1 (torchrun)  ACCELERATE=fsdp2|deepspeed_zero2"
	@echo "  RECORDS=runs|measured (what tables read)  TORCH_INDEX= (wheel index for a CPU-only torch)  FAILFAST=1  ARGS= (Hydra overrides)"
