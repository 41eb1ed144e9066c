# The environment is one file, .venv/.installed: every target that needs it depends on that stamp.

.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON  ?=# the interpreter for .venv; empty: the first of python3, 3.13, 3.12, 3.11 that is 3.11 or newer
WORKERS ?= 2# test processes, one torch thread each
# Bytecode is kept, also where the environment says otherwise: to compile torch and TensorFlow takes longer than to test them.
PYTEST   = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
BIN     := .venv/bin
ENV     := .venv/.installed
PEERS   := foolbox adversarial-robustness-toolbox torchattacks cleverhans secml-torch adv-lib
AUTOATTACK ?=# a checkout of the original AutoAttack, to be measured too

# uv installs about ten times faster than pip, and reads find-links from a variable of its own, split by commas.
# Where uv cannot be had, pip installs the same set.
define INSTALL
links="$${UV_FIND_LINKS:-$$(echo $${PIP_FIND_LINKS:-} | tr ' ' ',')}"; \
install() { \
  if [ -x $(BIN)/uv ]; then $${links:+env UV_FIND_LINKS="$$links"} $(BIN)/uv pip install --python $(BIN)/python -c constraints.txt "$$@"; \
  else $(BIN)/python -m pip install --no-input --disable-pip-version-check -c constraints.txt "$$@"; fi; \
}
endef

.PHONY: help demo test test-all test-mutants lint wheel bench docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(ENV)  ## train, attack, harden, attack again, compare, in minutes: runs/demo/report.html
	$(BIN)/holdfast demo --out runs/demo

test: .venv/.frameworks  ## the tests, but for the slow ones
	$(PYTEST)

test-all: .venv/.frameworks  ## every test, then test-mutants
	$(PYTEST) -m ""
	$(BIN)/python tests/mutants.py

test-mutants: .venv/.frameworks  ## plant known defects one by one; the tests must catch each
	$(BIN)/python tests/mutants.py

lint: .venv/.frameworks  ## ruff (lint, format) and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

wheel: $(ENV)  ## build the package into dist/
	rm -rf build
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

bench: .venv/.bench  ## compare with the peers and with the truth; renews the tables in docs/comparison.md and docs/protocols.md
	$(BIN)/python benchmarks/peers.py --docs $(if $(AUTOATTACK),--autoattack "$(AUTOATTACK)")
	$(BIN)/python benchmarks/truth.py --docs

docs: .venv/.docs  ## write the generated pages, then build the documentation into site/
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

clean:  ## remove what was built; leaves .venv and runs/
	rm -rf site build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(ENV): pyproject.toml constraints.txt
	@set -e; \
	for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "error: Holdfast needs Python 3.11 or newer, and $(or $(PYTHON),python3) is not. Name one: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv .venv; \
	[ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check -c constraints.txt uv \
	  || echo "uv cannot be had here; installing with pip, which is slower." >&2; \
	$(INSTALL); install -e ".[dev]"
	@touch $@

# What the models of other frameworks are tried with.
.venv/.frameworks: $(ENV)
	@$(INSTALL); install -e ".[frameworks]"
	@touch $@

.venv/.docs: $(ENV)
	@$(INSTALL); install -e ".[docs]"
	@touch $@

# --no-deps for the peers: torchattacks, secml-torch and adv-lib would bring torchvision and with it another torch.
.venv/.bench: $(ENV)
	@set -e; $(INSTALL); install -e ".[bench]"; install --no-deps $(PEERS)
	@touch $@
