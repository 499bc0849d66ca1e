# `make repro` regenerates the paper, `make test` runs the tests; each first makes the virtual environment it needs.
# `make repro SCALE=study` selects another scale first, as `python -m pipeline.select study` does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS := $(VENV)/.docs
PYTEST := python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: repro verify test test-all lint api clean-venv
.DELETE_ON_ERROR:

repro: $(READY)
	@mkdir -p .dvc/tmp
	@flock --nonblock --conflict-exit-code 75 .dvc/tmp/make-repro sh -c 'python -m pipeline.select $(SCALE) && dvc repro'; \
	  status=$$?; test $$status -ne 75 || echo 'error: another `make repro` is at work in this folder; wait for it' >&2; \
	  exit $$status

# Everything but the tests that are marked `nightly`: the attacks on the executor at all its tiers and as an ordinary
# user, every method on two processes, and other products of things that are each tried once here.
test: $(READY)
	$(PYTEST)

test-all: $(READY)
	$(PYTEST) -m ""

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy
	lint-imports

# The numbers listed in claims.yaml and the committed figures and tables, recomputed from the committed raw results.
verify: $(READY)
	python -m pipeline.verify

# HTML pages made from the docstrings, in build/api.
api: $(DOCS)
	pdoc etpo_core etpo_paper -o build/api

# The lock holds the versions that were tested. On Linux, torch's default build carries gigabytes of CUDA libraries;
# install the CPU build into $(VENV) beforehand if you have no GPU.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; name one with PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock torch
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[test]'
	@touch $(READY)

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[test,docs]'
	@touch $(DOCS)

clean-venv:
	rm -rf $(VENV)
