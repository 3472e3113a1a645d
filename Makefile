# One command each, the same locally and in CI. `make` alone lists them.
PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# pytest exits with 5 where a marker has no test yet.
MAY_BE_EMPTY := || [ $$? -eq 5 ]
# The bank belongs to the encoder that built it: a new encoder gets a new directory.
ENCODER := examples/encoder.onnx
BANK = .demo/bank-$(firstword $(shell cksum < $(ENCODER)))
RUN ?= runs/npid-demo

.DEFAULT_GOAL := help
.PHONY: help setup fix lint check test test-service test-slow test-gpu test-docker test-browser test-cluster \
        test-oldest demo pretrain-demo openapi constraints clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[service,training,dev]'
	@touch $@

# Serving alone: what the image holds, plus what runs its tests. No torch, no onnx.
.venv-service/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-service
	.venv-service/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt \
	  -e '.[service]' pytest hypothesis httpx2
	@touch $@

# The oldest versions that pyproject.toml allows; constraints.txt has the newest.
.venv-oldest/.ready: pyproject.toml .ci/oldest.py
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python .ci/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install -q --disable-pip-version-check -c .venv-oldest/constraints.txt \
	  -e '.[training]' pytest hypothesis
	@touch $@

.venv-demo/.ready: pyproject.toml constraints.txt
	@echo "installing what serving needs into .venv-demo …"
	@$(PYTHON) -m venv .venv-demo
	@.venv-demo/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[service]'
	@touch $@

setup: .venv/.ready ## make the development environment

fix: .venv/.ready ## format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: .venv/.ready ## ruff, mypy strict, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## everything that must hold before a commit

test: lint test-service ## prove the project: lint, serving alone, then everything with everything (< 10 minutes)
	$(PYTEST)

test-service: .venv-service/.ready ## prove that indexing and serving need no torch
	! .venv-service/bin/python -c "import torch" 2>/dev/null
	OMP_NUM_THREADS=1 .venv-service/bin/python -m pytest -q tests/index tests/service

test-slow: .venv/.ready ## long crash loops and training runs
	$(PYTEST) -m slow

test-gpu: .venv/.ready ## needs a GPU; skips with a reason without one
	$(PYTEST) -m gpu $(MAY_BE_EMPTY)

test-docker: .venv/.ready ## needs a Docker engine
	$(PYTEST) -m docker $(MAY_BE_EMPTY)

test-browser: .venv/.ready ## drives the page in Chromium
	$(PYTEST) -m browser

test-cluster: .venv/.ready ## several processes on this machine
	$(PYTEST) -m cluster $(MAY_BE_EMPTY)

test-oldest: .venv-oldest/.ready ## train with the oldest torch and torchvision that we promise
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q tests/training

demo: .venv-demo/.ready ## visual search over the gallery on http://127.0.0.1:8000 (PORT=… changes it)
	@mkdir -p .demo
	@.venv-demo/bin/python -m index build --encoder $(ENCODER) --images examples/gallery --out $(BANK)
	@echo
	@echo "  http://127.0.0.1:$(PORT)            click a drawing, or drop a picture of your own"
	@echo "  http://127.0.0.1:$(PORT)/docs       every route"
	@echo "  curl -F image=@examples/gallery/cats/kitten.webp 'http://127.0.0.1:$(PORT)/search?k=3'"
	@echo "  examples/ask.sh examples/gallery/cats/kitten.webp http://127.0.0.1:$(PORT)"
	@echo
	@exec .venv-demo/bin/python -m service --encoder $(ENCODER) --bank $(BANK) --images examples/gallery --port $(PORT)

pretrain-demo: .venv/.ready ## train a demo encoder from scratch on the CPU, about ten minutes (RUN=… changes the folder)
	$(BIN)/python -m training pretrain npid-demo --data examples/gallery --out $(RUN)
	$(BIN)/python -m training export $(RUN) --out $(RUN)/encoder.onnx
	$(BIN)/python -m training plot $(RUN) --out $(RUN)/curves.png

openapi: .venv/.ready ## write docs/openapi.json as served
	$(BIN)/python -m service openapi > docs/openapi.json

constraints: .venv/.ready ## pin the newest versions that fit (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate \
	  --upgrade --extra service --extra training --extra cluster --extra dev pyproject.toml -o constraints.txt

clean: ## remove environments, caches and the demo's bank
	rm -rf .venv .venv-service .venv-oldest .venv-demo .demo build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
