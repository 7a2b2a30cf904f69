# Targets create .venv on first use, and again when pyproject.toml or a lock changes.
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
JOBS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu)
LAUNCHER ?=
NPROC ?= 1
ACCELERATE ?=
RECORDS ?= runs
TORCH_INDEX ?=
LOCKED ?= 1
FAILFAST ?=
DETACH ?=
BENCH ?= cpu
BOLD ?= significant
STYLE ?= plain
ARGS ?=
# Checkouts of the authors' code for `make fidelity`, at the commits of docs/fidelity.md.
CHECKOUTS := PEFT_GIVENS PEFT_GIVENS_V2 PETL_VIT ADALORA LORA_XS SVFT PSOFT METAMATH HENDRYCKS_MATH LLM_ADAPTERS
KNOWN := PYTHON SUITE ITEM METHOD TASKS SEEDS PROTOCOL MODEL DATA JOBS LAUNCHER NPROC ACCELERATE RECORDS TORCH_INDEX LOCKED FAILFAST DETACH \
	BENCH BOLD STYLE ARGS VENV $(CHECKOUTS)
# A misspelled variable would be ignored silently.
ON_COMMAND_LINE = $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
UNKNOWN := $(filter-out $(KNOWN) MAKE% .%,$(ON_COMMAND_LINE))
# $(call NEAREST,kind,name,known names)
NEAREST = $(PYTHON) -c 'import difflib, sys; kind, name, *known = sys.argv[1:]; near = difflib.get_close_matches(name, known, 1, 0.5); \
	print(f"qgoft: unknown {kind} {name}" + (f" (did you mean {near[0]}?)" if near else "") + f"; known are {chr(32).join(known)}")' $(1) $(2) $(3)
ifneq ($(UNKNOWN),)
$(info $(shell $(call NEAREST,variable,$(firstword $(UNKNOWN)),$(KNOWN))))
$(error unknown variable $(firstword $(UNKNOWN)))
endif

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
COMMA := ,
# The value of a variable that the user has set.
GIVEN = $(if $(filter command environment,$(firstword $(origin $(1)))),$($(1)))

OPTIONS = $(if $(filter command environment,$(firstword $(origin METHOD))),--method '$(METHOD)') \
	--tasks '$(TASKS)' --seeds '$(SEEDS)' --protocol '$(PROTOCOL)' --model '$(MODEL)' --data '$(DATA)' --jobs '$(JOBS)' \
	--launcher '$(LAUNCHER)' --nproc '$(NPROC)' --accelerate '$(ACCELERATE)' --records '$(RECORDS)' --bold '$(BOLD)' --style '$(STYLE)' \
	$(if $(FAILFAST),--failfast) $(if $(DETACH),--detach)
# $(call SWEEP,suite or items)
SWEEP = $(PY) scripts/sweep.py $(1) $(OPTIONS)
# lm-eval scores MMLU with real decoders.
MMLU = $(if $(filter-out pocket,$(PROTOCOL)),$(VENV)/.mmlu)

# All packages except torch are locked with checksums (requirements/README.md).
INSTALL = $(PY) -m pip install --quiet
FROM_LOCK = $(INSTALL) --require-hashes --no-deps --no-build-isolation -r requirements

$(READY): pyproject.toml requirements/build.lock requirements/dev.lock
	@echo "creating $(VENV) (once, about two minutes and 2 GB)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qgoft: Python 3.11 or later is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$($(PYTHON) scripts/torch_pin.py)"
	@$(if $(LOCKED),$(FROM_LOCK)/build.lock && $(FROM_LOCK)/dev.lock && $(INSTALL) --no-deps --no-build-isolation --editable .,$(INSTALL) --editable '.[suite,dev]')
	@$(PY) -W ignore -m qgoft.ops.givens
	@touch $@

# On Linux the GPU kernels are tested in Triton's interpreter. PyTorch's builds for GPUs include a matching Triton.
$(VENV)/.triton: $(READY) requirements/triton.lock
	@test "$$(uname -s)" != Linux || $(PY) -c 'import triton' 2>/dev/null || { echo "installing triton for the tests of the GPU kernels (once, 1 GB)"; $(if $(LOCKED),$(FROM_LOCK)/triton.lock,$(INSTALL) --editable '.[triton]'); }
	@touch $@

$(VENV)/.mmlu: $(READY)
	@echo "installing lm-eval (once)"; $(PY) -m pip install --quiet --editable '.[mmlu]'
	@touch $@

TARGETS := env lock glue squad vtab vicuna mmlu math commonsense figure4 paper retention report audit fidelity test test-oldest test-native coverage check smoke bench counts status fetch clean help
.PHONY: $(TARGETS)

env: $(READY) ## create .venv

LOCK = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade
lock: $(READY) ## lock the newest packages that pyproject.toml allows, with checksums
	@$(INSTALL) uv
	@printf 'setuptools>=77\nwheel\n' | $(LOCK) - --output-file requirements/build.lock
	@$(LOCK) --excludes requirements/without.txt --extra suite --extra dev pyproject.toml --output-file requirements/dev.lock
	@sed -n 's/^triton = \["\(.*\)"\]/\1/p' pyproject.toml | $(LOCK) - --output-file requirements/triton.lock

glue: $(READY) ## fine-tune and evaluate METHOD on GLUE; print the table next to the published one
	@$(call SWEEP,glue) $(ARGS)

squad: $(READY) ## fine-tune and evaluate METHOD on SQuAD v1.1
	@$(call SWEEP,squad) $(ARGS)

vtab: $(READY) ## fine-tune and evaluate METHOD on the 19 tasks of VTAB-1K (TASKS=dtd,svhn for some)
	@$(call SWEEP,vtab) $(ARGS)

vicuna: $(READY) ## fine-tune METHOD on instructions, answer Vicuna-Eval, rate the answers and compare methods
	@$(call SWEEP,instruct) --tasks vicuna $(ARGS)

mmlu: $(READY) $(MMLU) ## fine-tune METHOD on instructions and score it on MMLU, with zero and five examples
	@$(call SWEEP,instruct) --tasks mmlu $(ARGS)

math: $(READY) ## fine-tune METHOD on MetaMathQA and score it on GSM8K and MATH
	@$(call SWEEP,math) $(ARGS)

commonsense: $(READY) ## fine-tune METHOD on Commonsense-15K and score it on eight test sets
	@$(call SWEEP,commonsense) $(ARGS)

# Items of configs/experiment: the rows, tasks and seeds of a printed table. METHOD, TASKS and SEEDS restrict them.
ITEMS := $(shell sed -n 's/^  name: //p' configs/experiment/*/*.yaml | sort -u -V)
table2 paper: $(MMLU)

OWN_ITEMS := $(shell grep -l '^  in_papers: false' configs/experiment/*/*.yaml | xargs sed -n 's/^  name: //p' | sort -u)

UNKNOWN_GOALS := $(foreach goal,$(filter-out $(TARGETS) $(ITEMS),$(MAKECMDGOALS)),$(if $(findstring /,$(goal)),,$(goal)))
ifneq ($(UNKNOWN_GOALS),)
$(info $(shell $(call NEAREST,target,$(firstword $(UNKNOWN_GOALS)),$(TARGETS) $(ITEMS))))
$(error unknown target $(firstword $(UNKNOWN_GOALS)))
endif

.PHONY: $(ITEMS)
$(ITEMS): $(READY)
	@$(call SWEEP,$@) $(ARGS)

figure4: $(READY) ## figure 4 of GOFT: `make flexibility` (a) and `make lambda` (b)
	@$(call SWEEP,flexibility$(COMMA)lambda) $(ARGS)

paper: $(READY) ## every table and figure of both papers that PROTOCOL supports (items: see below)
	@$(call SWEEP,all) $(ARGS)

# Decoders of the papers are also asked by tasks of lm-eval.
retention: $(READY) $(if $(filter instruct math commonsense,$(SUITE)),$(MMLU)) ## measure what METHOD retains of the backbone's other abilities on SUITE (or ITEM); pending runs first
	@$(PY) scripts/retention.py $(or $(ITEM),$(SUITE)) $(OPTIONS) $(ARGS)

report: $(READY) ## write results/report.html and all tables and figures from the records (RECORDS=measured: the committed ones)
	@$(PY) scripts/report.py --records '$(RECORDS)' --bold '$(BOLD)' --style '$(STYLE)' --jobs '$(JOBS)' $(ARGS)

fidelity: $(READY) ## run the authors' code next to ours and print the agreement (PEFT_GIVENS=DIR ...; docs/fidelity.md)
	@$(PY) scripts/fidelity.py $(foreach name,$(CHECKOUTS),$(if $($(name)),--$(subst _,-,$(shell echo $(name) | tr A-Z a-z)) '$($(name))')) $(if $(DATA),--data '$(DATA)') $(ARGS)

audit: $(READY) ## check the published values: averages, counts, rounding, sizes, the released operator
	@$(PY) scripts/audit.py $(ARGS)

test: $(READY) $(VENV)/.triton ## lint, type check and all tests that need no GPU (ten minutes on two cores)
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -q

# Left out: building the package, and the compiler of a newer Triton.
OLDEST = build/oldest/bin/python
test-oldest: ## the adapter's tests with the oldest packages that pyproject.toml allows, in an environment of their own
	@test -x $(OLDEST) || $(PYTHON) -m venv build/oldest
	@$(OLDEST) -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $$($(PYTHON) scripts/torch_pin.py --oldest) pytest
	@PYTHONPATH=. OMP_NUM_THREADS=1 $(OLDEST) -m pytest -q -p no:cacheprovider -k 'not installation and not spills' tests/ops tests/tuners

DRIVER = mkdir -p build/native && $(CC) tests/ops/native/driver.c -std=gnu11 -Wall -Wextra -Wno-psabi -ffp-contract=off -fopenmp
test-native: ## random cases of the native kernels under sanitizers, in emulation and under valgrind (ARGS="CASES SEED")
	@$(DRIVER) -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -o build/native/sanitized -lm && build/native/sanitized $(or $(ARGS),3000)
	@$(DRIVER) -O2 -DEMULATE -o build/native/emulated -lm && build/native/emulated $(or $(ARGS),3000)
	@$(DRIVER) -O2 -g -o build/native/plain -lm; if command -v valgrind >/dev/null; then valgrind -q --error-exitcode=3 build/native/plain 50; else echo "valgrind is not installed"; fi

coverage: $(READY) $(VENV)/.triton ## branch coverage of qgoft/ (a quarter of an hour)
	@$(VENV)/bin/coverage erase
	@OMP_NUM_THREADS=1 $(VENV)/bin/coverage run -m pytest -n $(JOBS) -q
	@$(VENV)/bin/coverage combine --quiet && $(VENV)/bin/coverage report

check: $(READY) ## lint, type check and the fast tests (two minutes)
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -q -m "not slow"

smoke: $(READY) ## a run of four steps, with its table (one minute)
	@$(PY) scripts/sweep.py glue --tasks cola --protocol pocket train.max_steps=4 train.num_evals=1 results.root=results/smoke

bench: $(READY) ## time and memory relative to LoRA (half an hour; BENCH=paper: shapes of the papers, on a GPU)
	@$(PY) scripts/bench.py --set '$(BENCH)' $(ARGS)

counts: $(READY) ## trainable parameters of every method on the papers' models, next to the published counts
	@$(PY) scripts/counts.py --method '$(call GIVEN,METHOD)' $(ARGS)

status: $(READY) ## status of the runs of SUITE with METHOD, or of ITEM (a table, or all): done, running, failed, planned
	@$(call SWEEP,$(or $(ITEM),$(SUITE))) --action status $(ARGS)

FETCHED = $(or $(ITEM),$(call GIVEN,SUITE),all)
fetch: $(READY) $(if $(filter instruct table2 all,$(subst $(COMMA), ,$(FETCHED))),$(MMLU)) ## download the data, weights and prompts of PROTOCOL, or of one SUITE or ITEM (then HF_HUB_OFFLINE=1 works)
	@$(call SWEEP,$(FETCHED)) --action fetch $(ARGS)

clean: ## remove .venv, caches and generated tables; keep results/runs
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache results/tables results/figures results/bench results/jobs results/smoke results/report.html *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## print this list
	@echo "usage: make TARGET [NAME=value ...]"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1 /' | awk '{ line = sprintf("  %-13s", $$1); \
	  for (i = 2; i <= NF; i++) { if (length(line) + length($$i) > 77) { print line; line = sprintf("%15s", "") } line = line " " $$i } print line }'
	@echo
	@echo "items of the papers:"; echo "  $(filter-out $(OWN_ITEMS),$(ITEMS))" | fold -s -w 76 | sed 's/^ */  /'
	@echo "items of this project: $(OWN_ITEMS)"
	@echo
	@echo "variables and defaults:"
	@echo "  METHOD=qgoft (suites, status; items: their rows)  a list; lora@r2: a variant"
	@echo "  TASKS= (all)               a list: rte,mrpc"
	@echo "  SEEDS=0 (suites; items: those of the protocol)    a list or a range, 0-4"
	@echo "  PROTOCOL=pocket            small, goft_icml24, psoft_iclr26"
	@echo "  MODEL= DATA=               another model; a directory instead of the hub"
	@echo "  SUITE=glue ITEM=           of status, retention and fetch (fetch: default all)"
	@echo "  JOBS=cores                 runs at a time"
	@echo "  NPROC=1                    processes of a run (torchrun)"
	@echo "  ACCELERATE=                fsdp2 or deepspeed_zero2, with NPROC"
	@echo "  LAUNCHER=joblib            submitit_local, submitit_slurm; DETACH=1"
	@echo "  RECORDS=runs               measured: tables of the committed records"
	@echo "  BOLD=significant           best: bold for the highest mean of a column"
	@echo "  STYLE=plain                paper: marks such as (subset) become notes"
	@echo "  BENCH=cpu                  paper: the shapes of the papers, on a GPU"
	@echo "  FAILFAST=1                 stop at the first failure"
	@echo "  ARGS=                      Hydra overrides, options of the script"
	@echo "  PYTHON=python3 TORCH_INDEX= LOCKED=1    of make env (README)"
