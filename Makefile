# Every target makes .venv by itself, once; it is made anew when pyproject.toml changes.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SUFFIXES:

PYTHON ?= python3
SUITE ?= glue
ITEM ?=
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
LOCKED ?= 1
FAILFAST ?=
DETACH ?=
BENCH ?= cpu
ARGS ?=
WHAT_IS_GIVEN = $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
KNOWN := PYTHON SUITE ITEM METHOD TASKS SEEDS PROTOCOL MODEL DATA JOBS LAUNCHER NPROC ACCELERATE RECORDS TORCH_INDEX LOCKED FAILFAST DETACH \
	BENCH ARGS PEFT_GIVENS PEFT_GIVENS_V2 PETL_VIT ADALORA LORA_XS SVFT PSOFT METAMATH HENDRYCKS_MATH LLM_ADAPTERS VENV
# A misspelled variable would run something else. The program prints what is meant.
UNKNOWN := $(filter-out $(KNOWN) MAKE% .%,$(WHAT_IS_GIVEN))
ifneq ($(UNKNOWN),)
$(info $(shell $(PYTHON) -c 'import difflib, sys; name, *known = sys.argv[1:]; near = difflib.get_close_matches(name, known, 1, 0.5); \
	print(f"qgoft: unknown variable {name}; known are {chr(32).join(known)}" + (f"; did you mean {near[0]}?" if near else ""))' $(firstword $(UNKNOWN)) $(KNOWN)))
$(error unknown variable $(firstword $(UNKNOWN)))
endif

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# glibc returns freed memory to the system and has every page faulted in again: small models on a CPU train a tenth faster where it does not.
KEEP = $(if $(filter pocket,$(PROTOCOL)),MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=16000000000 MALLOC_TOP_PAD_=67108864)
RUN_SUITE = $(KEEP) $(PY) scripts/suite.py $(1) --method '$(METHOD)' --tasks '$(TASKS)' --seeds '$(SEEDS)' --protocol '$(PROTOCOL)' --model '$(MODEL)' \
	--data '$(DATA)' --jobs '$(JOBS)' --launcher '$(LAUNCHER)' --nproc '$(NPROC)' --accelerate '$(ACCELERATE)' --records '$(RECORDS)' $(if $(FAILFAST),--failfast) $(if $(DETACH),--detach)
COMMA := ,
# The libraries must not look for a GPU's tokenizer threads or a hub that the embedded protocol does not need.
export TOKENIZERS_PARALLELISM := false

# Every package but torch comes from a lock with checksums (requirements/README.md).
INSTALL = $(PY) -m pip install --quiet
FROM_LOCK = $(INSTALL) --require-hashes --no-deps --no-build-isolation -r requirements

$(READY): pyproject.toml requirements/build.lock requirements/dev.lock
	@echo "making $(VENV) (once, about two minutes and 2 GB)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qgoft: Python 3.11 or later is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$($(PYTHON) scripts/torch_pin.py)"
	@$(if $(LOCKED),$(FROM_LOCK)/build.lock && $(FROM_LOCK)/dev.lock && $(INSTALL) --no-deps --no-build-isolation --editable .,$(INSTALL) --editable '.[dev]')
	@touch $@

# On Linux the GPU kernels are tested in Triton's interpreter, with or without a GPU. Elsewhere their tests are skipped. torch's builds for
# GPUs bring the Triton that fits them.
$(VENV)/.triton: $(READY) requirements/triton.lock
	@test "$$(uname -s)" != Linux || $(PY) -c 'import triton' 2>/dev/null || { echo "adding triton for the tests of the GPU kernels (once, 1 GB)"; $(if $(LOCKED),$(FROM_LOCK)/triton.lock,$(INSTALL) --editable '.[triton]'); }
	@touch $@

# Real decoders are scored on MMLU by lm-eval.
$(VENV)/.mmlu: $(READY)
	@echo "adding lm-eval (once)"; $(PY) -m pip install --quiet --editable '.[mmlu]'
	@touch $@

.PHONY: env lock glue squad vtab vicuna mmlu math commonsense figure4 paper report audit fidelity test coverage check smoke bench counts status fetch clean help

env: $(READY) ## make .venv, and nothing else

LOCK = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade
lock: $(READY) ## lock the newest packages that pyproject.toml allows, with their checksums
	@$(INSTALL) uv
	@printf 'setuptools>=77\nwheel\n' | $(LOCK) - --output-file requirements/build.lock
	@$(LOCK) --excludes requirements/without.txt --extra dev pyproject.toml --output-file requirements/dev.lock
	@sed -n 's/^triton = \["\(.*\)"\]/\1/p' pyproject.toml | $(LOCK) - --output-file requirements/triton.lock

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

# Items of the papers: the rows and tasks that the paper prints, the protocol's seeds; METHOD, TASKS and SEEDS narrow them.
ITEMS := table1 table2 table3 table4 table10 figure3 psoft-table2 psoft-table3 psoft-table4 psoft-table5 psoft-table6 psoft-table7 \
	psoft-table13 psoft-table15 psoft-table16 psoft-table17 psoft-table18 psoft-table19 psoft-table20 psoft-table21 psoft-table22 \
	psoft-figure3 psoft-figure4 pairing exactness pictures real-glue lambda flexibility
GIVEN = $(if $(filter command environment,$(firstword $(origin $(1)))),$($(1)))
RUN_ITEM = $(KEEP) $(PY) scripts/paper.py $(1) --method '$(call GIVEN,METHOD)' --tasks '$(TASKS)' --seeds '$(SEEDS)' --protocol '$(PROTOCOL)' --model '$(MODEL)' \
	--data '$(DATA)' --jobs '$(JOBS)' --launcher '$(LAUNCHER)' --nproc '$(NPROC)' --accelerate '$(ACCELERATE)' --records '$(RECORDS)' \
	$(if $(FAILFAST),--failfast) $(if $(DETACH),--detach)

# MMLU of real decoders is scored by lm-eval.
table2 paper: $(if $(filter-out pocket,$(PROTOCOL)),$(VENV)/.mmlu)

.PHONY: $(ITEMS)
$(ITEMS): $(READY)
	@$(call RUN_ITEM,$@) $(ARGS)

figure4: $(READY) ## figure 4 of GOFT: `make flexibility` (a) and `make lambda` (b)
	@$(call RUN_ITEM,flexibility$(COMMA)lambda) $(ARGS)

paper: $(READY) ## every table and figure of both papers that PROTOCOL has (ITEMS: see below)
	@$(call RUN_ITEM,all) $(ARGS)

report: $(READY) ## results/report.html and all tables and figures from the records that are there (RECORDS=measured: the committed ones)
	@$(PY) scripts/report.py --records '$(RECORDS)' --jobs '$(JOBS)' $(ARGS)

# A directory each: checkouts of the authors' code, at the commits of docs/fidelity.md.
CHECKOUTS := PEFT_GIVENS PEFT_GIVENS_V2 PETL_VIT ADALORA LORA_XS SVFT PSOFT METAMATH HENDRYCKS_MATH LLM_ADAPTERS
fidelity: $(READY) ## run the authors' own code next to ours and print the agreement (PEFT_GIVENS=DIR PETL_VIT=DIR ...; docs/fidelity.md)
	@$(PY) scripts/fidelity.py $(foreach name,$(CHECKOUTS),$(if $($(name)),--$(subst _,-,$(shell echo $(name) | tr A-Z a-z)) '$($(name))')) $(if $(DATA),--data '$(DATA)') $(ARGS)

audit: $(READY) ## check what the papers print: averages, counts, granularity, sizes, the released operator
	@$(PY) scripts/audit.py $(ARGS)

test: $(READY) $(VENV)/.triton ## everything that a CPU can check, in ten minutes on two cores
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -q

coverage: $(READY) $(VENV)/.triton ## which branches of qgoft/ the tests take, in a quarter of an hour
	@$(VENV)/bin/coverage erase
	@OMP_NUM_THREADS=1 $(VENV)/bin/coverage run -m pytest -n $(JOBS) -q
	@$(VENV)/bin/coverage combine --quiet && $(VENV)/bin/coverage report

check: $(READY) ## style, types and the fast tests, in two minutes
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -q -m "not slow"

smoke: $(READY) ## a tiny run through to a table cell, in a minute
	@$(PY) scripts/suite.py glue --tasks cola --protocol pocket train.max_steps=4 train.num_evals=1 results.root=results/smoke

bench: $(READY) ## time and memory against LoRA, every rival in one run, half an hour (BENCH=paper: the papers' shapes, on a GPU)
	@$(PY) scripts/bench.py --set '$(BENCH)' $(ARGS)

counts: $(READY) ## trainable parameters of every method on the papers' shapes, beside the published counts
	@$(PY) scripts/counts.py --method '$(call GIVEN,METHOD)' $(ARGS)

status: $(READY) ## the ledger: what is done, runs, failed or is planned of SUITE with METHOD, or of ITEM (a table, or all)
	@$(if $(ITEM),$(call RUN_ITEM,$(ITEM)),$(call RUN_SUITE,$(SUITE))) --action status $(ARGS)

# What is fetched: the items named, or all of the protocol where no suite is named.
FETCHED = $(or $(ITEM),$(if $(call GIVEN,SUITE),,all))
fetch: $(READY) $(if $(filter-out pocket,$(PROTOCOL)),$(if $(filter instruct table2 all,$(subst $(COMMA), ,$(or $(FETCHED),$(SUITE)))),$(VENV)/.mmlu)) ## download once what PROTOCOL, or one SUITE or ITEM of it, needs: data, weights, judge prompts (then HF_HUB_OFFLINE=1 works)
	@$(if $(FETCHED),$(call RUN_ITEM,$(FETCHED)),$(call RUN_SUITE,$(SUITE))) --action fetch $(ARGS)

clean: ## remove .venv, caches and generated tables; keeps results/runs
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache results/tables results/figures results/bench results/multirun results/jobs results/smoke results/report.html *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@echo "usage: make TARGET [NAME=value ...]"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1 /' | awk '{ line = sprintf("  %-13s", $$1); \
	  for (i = 2; i <= NF; i++) { if (length(line) + length($$i) > 77) { print line; line = sprintf("%15s", "") } line = line " " $$i } print line }'
	@echo
	@echo "items of the papers:"; echo "  $(ITEMS)" | fold -s -w 76 | sed 's/^ */  /'
	@echo
	@echo "names and defaults:"
	@echo "  SUITE=glue (of status and fetch)    METHOD=qgoft (a list; lora@r2: a variant)"
	@echo "  TASKS= (a list; all)                SEEDS= (a list or a range, 0-4; 0)"
	@echo "  PROTOCOL=pocket                     MODEL=  DATA= (a directory, not the hub)"
	@echo "  JOBS=cores                          NPROC=1 (processes of a run, torchrun)"
	@echo "  LAUNCHER=basic|joblib|submitit_local|submitit_slurm"
	@echo "  ACCELERATE=fsdp2|deepspeed_zero2    RECORDS=runs|measured (read by tables)"
	@echo "  TORCH_INDEX= (wheels of torch)      LOCKED=1 (empty: newest packages)"
	@echo "  FAILFAST=1  DETACH=1                ARGS= (Hydra overrides, script options)"
