# Two commands matter: `make demo` and `make test`. Both need only Python >= 3.11 and make.
PYTHON ?= python3
# The lock decides the versions: requirements.lock has the oldest torch that is supported, requirements-newest.lock the
# newest of everything (`make test-newest`).
LOCK ?= requirements.lock
CACHE := $(HOME)/.cache/crossdistill
# The environment is kept outside the checkout, by the lock and the Python it was made for.
KEY := $(shell { cat $(LOCK); $(PYTHON) -c 'import sys; print(sys.version)'; } | cksum | cut -d ' ' -f 1)
ENV := $(CACHE)/env-$(KEY)
RUN := $(ENV)/bin/python

.PHONY: demo test test-newest lint types format lock clean

demo: $(ENV)/ready
	PYTHONPATH=src $(RUN) -m crossdistill demo

# One process for each core, at most four; the tests of a file stay together, as they share trained models.
test: $(ENV)/ready
	OMP_NUM_THREADS=1 PYTHONPATH=src $(RUN) -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile $(TESTS)

# A part of the tests, to keep the whole within its time; `make test LOCK=requirements-newest.lock` runs all of them.
test-newest: TESTS := tests/backbones tests/losses tests/methods tests/evaluation tests/tasks tests/training/test_run.py \
  tests/commands/test_commands.py tests/commands/test_export.py tests/data/test_preprocessing.py $(wildcard tests/test_*.py)
test-newest:
	$(MAKE) test LOCK=requirements-newest.lock TESTS="$(TESTS)"

lint: $(ENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(ENV)/ready
	$(RUN) -m mypy

format: $(ENV)/ready
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Bytecode is compiled once here: importing torch and timm without it takes many times longer. The folder's name
# contains a checksum of the lock, so a fresh checkout with the same lock finds the environment ready.
$(ENV)/ready:
	rm -rf $(ENV)
	$(PYTHON) -m venv $(ENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	$(ENV)/bin/uv pip install --quiet --python $(RUN) --compile-bytecode -r $(LOCK)
	touch $@

# Resolve the newest versions that pyproject.toml allows; for requirements.lock torch stays at the oldest supported one.
COMPILE = $(ENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra parquet --extra hf --extra onnx --extra cluster --group dev --no-header
lock: $(ENV)/ready
	$(COMPILE) --constraint constraints.txt pyproject.toml --output-file requirements.lock
	$(COMPILE) pyproject.toml --output-file requirements-newest.lock

clean:
	rm -rf $(CACHE) runs .pytest_cache .mypy_cache .ruff_cache
