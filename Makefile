# The whole project in a few words; `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
VENV   ?= .venv
SOURCE ?= Source
OUTPUT ?= runs
PRESET ?= quick
# Further options of `hemafast train`, such as ARGS="--epochs 10 --seed 7".
ARGS   ?=
# Of `make faults`: its minutes, and LONG=1 for a thousand kills.
MINUTES ?= 25
LONG    ?=
INPUTS ?= 100000

# cpu or cuda: which build of torch to install; auto looks for a card. And the index that is asked for the CPU build.
DEVICE      ?= auto
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS     := $(VENV)/.tools
PYTEST    := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal
INSTALL   := $(BIN)/python tools/install.py --device '$(DEVICE)' --torch-index '$(TORCH_INDEX)'

.PHONY: help install train resume bench faults test nightly lint format docs fuzz soak lock release image clean

help: ## List what can be made
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

install: $(INSTALLED) ## Create the virtual environment and install hemafast into it

$(INSTALLED): pyproject.toml constraints.txt tools/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hemafast needs Python 3.11 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) explain,export,notebook,ssl,tune,weights
	@touch $@

$(TOOLS): $(INSTALLED)
	$(INSTALL) dev,docs
	@touch $@

train: install ## Draw demo archives if there are none, prepare, train, evaluate, report
	$(BIN)/hemafast demo --source '$(SOURCE)'
	$(BIN)/hemafast prepare --source '$(SOURCE)'
	$(BIN)/hemafast train --preset '$(PRESET)' --data '$(SOURCE)/prepared' --output '$(OUTPUT)' $(ARGS)

resume: install ## Go on with a run: make resume OUTDIR=runs/NAME [EPOCHS=50]
	$(BIN)/hemafast train --resume '$(OUTDIR)' $(if $(EPOCHS),--epochs $(EPOCHS))

bench: install ## Measure this machine beside plain PyTorch
	$(BIN)/hemafast bench --data '$(SOURCE)/prepared'

faults: $(TOOLS) ## Kill commands, fill their disk, damage their files, and count what is lost
	$(BIN)/python tools/run_faults.py --minutes '$(MINUTES)' $(if $(LONG),--kills 1000 --jobs 2) --json '$(OUTPUT)/faults.json' $(ARGS)

test: $(TOOLS) lint ## Linter, type checker, tests: what CI runs on every commit
	$(PYTEST) -m 'not nightly'

nightly: $(TOOLS) ## The long tests, which CI runs every night
	$(PYTEST) -m nightly

lint: $(TOOLS) ## Linter and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TOOLS) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(TOOLS) ## Build the site of the pages into site/, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

fuzz: $(TOOLS) ## Search for input that is neither taken nor refused: make fuzz [INPUTS=100000]
	$(BIN)/python tools/run_fuzz.py --inputs $(INPUTS)

soak: $(TOOLS) ## Train 2,000 short epochs, and see whether memory, files, threads or their time grow: make soak [EPOCHS=2000]
	$(BIN)/python tools/run_soak.py --epochs '$(or $(EPOCHS),2000)' --json '$(OUTPUT)/soak.json' --plot '$(OUTPUT)/soak.png'

lock: $(TOOLS) ## Write the installed versions into constraints.txt, and their hashes into requirements.lock
	$(BIN)/python -m pip freeze --all --exclude pip --exclude-editable > constraints.txt
	$(BIN)/python -m pip install --quiet --dry-run --no-deps --ignore-installed --report $(VENV)/lock.json --requirement constraints.txt
	$(BIN)/python tools/lock.py $(VENV)/lock.json > requirements.lock

release: $(TOOLS) ## Build the wheel and its bill of materials into dist/
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .
	$(BIN)/python tools/third_party.py > dist/hemafast.cdx.json

image: ## Build the container images, for a CPU and for CUDA
	docker build --target cpu --tag hemafast:cpu .
	docker build --target cuda --tag hemafast:cuda .

clean: ## Remove the virtual environment and caches; archives and runs stay
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache *.egg-info
