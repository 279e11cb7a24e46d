# Tangram's chores. Needs make and Python 3.11 to 3.13; the newest found is taken, PYTHON=... names another.

SHELL := /bin/sh
MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
CODE := gateway autoscaler packer tangram
PIP := -m pip install --quiet --disable-pip-version-check --no-input
UV := uv==0.9.*

.PHONY: help run test check lint format load bench soak fuzz native triton lock clean

help:  ## Say what can be made
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: $(VENV)/stamps/native  ## Start examples/fleet.yaml on this machine; Ctrl-C stops it
	@exec $(BIN)/tangram up examples/fleet.yaml

test: $(VENV)/stamps/dev $(VENV)/stamps/native  ## All checks and all tests, those that start processes included
	@status=0; $(MAKE) lint || status=1; $(BIN)/python -m pytest || status=$$?; exit $$status

check: lint  ## Checks and unit tests, in under two minutes
	@$(BIN)/python -m pytest -q -m "not integration and not gpu"

lint: $(VENV)/stamps/dev  ## Format, lint, types and walls
	@$(BIN)/python -m ruff format --check --quiet . || { echo "make format mends the layout"; exit 1; }
	@$(BIN)/python -m ruff check --quiet .
	@$(BIN)/python -m mypy --no-error-summary
	@$(BIN)/lint-imports > $(VENV)/walls.txt || { cat $(VENV)/walls.txt; exit 1; }

format: $(VENV)/stamps/dev  ## Lay out the code and mend what can be mended
	@$(BIN)/python -m ruff check --fix --quiet . || true
	@$(BIN)/python -m ruff format .

load: $(VENV)/stamps/native .venv-load/stamps/load  ## Two minutes of stepped load on a running Tangram, or on one of its own
	@exec $(BIN)/python -m loadtests.run

WHAT ?= control
bench: $(VENV)/stamps/native  ## Measure the claims of WHAT=control, or "gateway --quick"; the last line is JSON
	@exec $(BIN)/python -m benchmarks.$(WHAT)

soak: $(VENV)/stamps/dev $(VENV)/stamps/native  ## The gateway's memory over 10,000 clients that leave and bodies of 1 GB
	@TANGRAM_SOAK=1 $(BIN)/python -m pytest -q -s tests/gateway/test_soak.py

SECONDS ?= 60
FUZZ = import sys, tests.conftest, tests.gateway.fuzz; sys.exit(tests.gateway.fuzz.main())
fuzz: $(VENV)/stamps/dev $(VENV)/stamps/native  ## Random requests and answers, cut at random, through the gateway; SECONDS=60
	@$(BIN)/python -m tests.gateway.fuzz --seconds $(SECONDS)
	@if $(BIN)/python -m gateway.native; then TANGRAM_TEST_NATIVE=1 $(BIN)/python -c "$(FUZZ)" --seconds $(SECONDS); fi

native: $(VENV)/stamps/native  ## Compile the gateway's hot modules; run, test and bench do so where there is a C compiler

triton: .venv-triton/stamps/triton  ## An environment with a real Triton (no GPU needed) for the integration tests

# What is compiled names no index and no machine; dev keeps to base, so that both fit one environment.
COMPILE = .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
  --no-emit-index-url --no-header --no-annotate
lock: .venv-lock/stamps/lock  ## Compile requirements/*.txt anew from pyproject.toml
	@$(COMPILE) pyproject.toml -o requirements/base.txt
	@$(COMPILE) pyproject.toml -c requirements/base.txt --group test --group lint --group train \
	  --extra kubernetes --extra nvidia --extra solver --extra plot -o requirements/dev.txt
	@$(COMPILE) -c requirements/dev.txt --group native -o requirements/native.txt
	@$(COMPILE) --group load -o requirements/load.txt

clean:  ## Remove environments, caches and build outputs; what `tangram up` keeps stays
	@rm -rf .venv .venv-load .venv-lock .venv-triton dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Environments ---------------------------------------------------------------------------------------------------
# A stamp is older than a file it was made from: that environment is brought up to date. Environments hold absolute
# paths: one that was moved or copied here, that lost its Python or has not the PYTHON asked for, is made anew.

define usable
grep -qs "^command = .* $(CURDIR)/$(1)$$" $(1)/pyvenv.cfg && [ -x $(1)/bin/python ] && [ -x $(1)/bin/pip ] \
  $(if $(PYTHON),&& grep -qs "^version = $$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')\." $(1)/pyvenv.cfg)
endef

$(foreach v,.venv .venv-load .venv-lock .venv-triton,$(shell { [ ! -d $(v) ] || { $(call usable,$(v)); }; } || rm -rf $(v)/stamps))

define make_venv
@if ! { $(call usable,$(1)); }; then \
  for python in $(or $(PYTHON),$(2),python3.13 python3.12 python3.11 python3); do \
    $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
    echo "Setting up $(1) with $$($$python -V) ..."; \
    $$python -m venv --clear $(1) || exit 1; \
    found=1; break; \
  done; \
  [ "$$found" ] || { \
    echo "Tangram needs Python 3.11, 3.12 or 3.13 with venv and ensurepip; found none$(if $(PYTHON), as $(PYTHON))." >&2; \
    echo "On Debian or Ubuntu: apt-get install python3 python3-venv; or name one: make PYTHON=/path/to/python3" >&2; \
    exit 1; }; \
fi
@mkdir -p $(1)/stamps && touch $@
endef

.venv/stamps/venv:
	$(call make_venv,.venv)
.venv-load/stamps/venv:
	$(call make_venv,.venv-load)
.venv-lock/stamps/venv:
	$(call make_venv,.venv-lock)
.venv-triton/stamps/venv:
	$(call make_venv,.venv-triton,python3.12 python3.11)

.venv/stamps/base: requirements/base.txt pyproject.toml | .venv/stamps/venv
	@echo "Installing requirements/base.txt ..."
	@.venv/bin/python $(PIP) -r requirements/base.txt
	@.venv/bin/python $(PIP) --no-deps -e .
	@touch $@

.venv/stamps/dev: requirements/dev.txt .venv/stamps/base
	@echo "Installing requirements/dev.txt ..."
	@.venv/bin/python $(PIP) -r requirements/dev.txt
	@touch $@

# What cannot be compiled runs as it is; it is said here once, and by each worker when it starts.
.venv/stamps/native: requirements/native.txt $(shell find gateway -name '*.py') .venv/stamps/base
	@if ! command -v $${CC:-cc} > /dev/null; then \
	  echo "The gateway runs as plain Python: there is no C compiler."; \
	elif .venv/bin/python $(PIP) -r requirements/native.txt; then \
	  echo "Compiling the gateway ..."; .venv/bin/python -m gateway.native || true; \
	fi
	@touch $@

.venv-load/stamps/load: requirements/load.txt | .venv-load/stamps/venv
	@echo "Installing requirements/load.txt ..."
	@.venv-load/bin/python $(PIP) -r requirements/load.txt
	@touch $@

# It pins numpy below 2, so it cannot share ours; there is none for Python 3.13.
.venv-triton/stamps/triton: | .venv-triton/stamps/venv
	@echo "Installing a Triton ..."
	@.venv-triton/bin/python $(PIP) nvidia-pytriton==0.7.0
	@touch $@

.venv-lock/stamps/lock: | .venv-lock/stamps/venv
	@.venv-lock/bin/python $(PIP) "$(UV)"
	@touch $@
