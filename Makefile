# README's commands. Everything is installed into .venv; nothing else on the machine is touched,
# but for the private database and caches in the user's own data and cache folders.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DATASET ?= digits

export PIP_DISABLE_PIP_VERSION_CHECK := 1

SEED    ?= 1
MINUTES ?= 3

.PHONY: demo test lint check bench bench-search chaos clean

demo: $(VENV)/.demo-ready
	$(BIN)/python examples/keras_digits.py --dataset $(DATASET)

test: $(VENV)/.dev-ready
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

bench: $(VENV)/.dev-ready
	$(BIN)/python -m benchmarks

bench-search: $(VENV)/.dev-ready
	$(BIN)/python -m benchmarks.search run
	$(BIN)/python -m benchmarks.search cost
	$(BIN)/python -m benchmarks.search report

chaos: $(VENV)/.dev-ready
	$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES) --out chaos-out

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-ready: pyproject.toml | $(VENV)/bin/pip
	@echo "installing hyperfarm, Keras and TensorFlow into $(VENV) (once, about a minute)"
	$(BIN)/pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.dev-ready: pyproject.toml | $(VENV)/bin/pip
	@echo "installing hyperfarm with everything its tests need into $(VENV) (once, about a minute)"
	$(BIN)/pip install --quiet --editable '.[demo,dev]'
	@touch $@
