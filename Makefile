# `make repro` regenerates the paper, `make test` runs the tests; each first makes the virtual environment it needs.
# `make repro SCALE=study` selects another scale first, as `python -m pipeline.select study` does.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: repro verify report test test-all lint api hashes clean-venv
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

# All notebooks, executed and rendered as pages that need no network: build/report/index.html.
report: $(READY)
	@python -m pipeline.report

# HTML pages made from the docstrings, in build/api.
api: $(READY)
	pdoc etpo_core etpo_paper -o build/api

# The lock holds the versions that were tested, and requirements.hashes the same with the hashes of their files, which
# pip checks. Only torch is left out there, because its builds differ from index to index. On Linux, torch's default build
# carries gigabytes of CUDA libraries; install the CPU build into $(VENV) beforehand if you have no GPU.
$(READY): pyproject.toml requirements.lock requirements.hashes
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; name one with PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements.hashes
	$(BIN)/python -m pip install --quiet --constraint requirements.lock torch
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[test]'
	@touch $(READY)

# Writes requirements.hashes again after a change of requirements.lock; needs uv.
hashes:
	@grep -v '^torch==' requirements.lock | uv pip compile - --quiet --no-deps --generate-hashes --no-annotate \
		--no-header --python-version 3.11.0 --output-file requirements.hashes

clean-venv:
	rm -rf $(VENV)
