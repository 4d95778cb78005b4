# Two commands matter: `make demo` and `make test`. Both need only Python >= 3.11 and make.
PYTHON ?= python3
LOCK := requirements.lock
CACHE := $(HOME)/.cache/crossdistill
# The environment is kept outside the checkout, by the lock and the Python it was made for.
KEY := $(shell { cat $(LOCK); $(PYTHON) -c 'import sys; print(sys.version)'; } | cksum | cut -d ' ' -f 1)
ENV := $(CACHE)/env-$(KEY)
RUN := $(ENV)/bin/python

.PHONY: demo test lint types format lock clean

demo: $(ENV)/ready
	PYTHONPATH=src $(RUN) -m crossdistill demo

test: $(ENV)/ready
	PYTHONPATH=src $(RUN) -m pytest -m "not slow"

lint: $(ENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: $(ENV)/ready
	$(RUN) -m mypy

format: $(ENV)/ready
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Bytecode is compiled once here: importing torch and timm without it takes many times longer. The folder's name stands
# for the lock, so a fresh checkout of the same lock finds the environment ready.
$(ENV)/ready:
	rm -rf $(ENV)
	$(PYTHON) -m venv $(ENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	$(ENV)/bin/uv pip install --quiet --python $(RUN) --compile-bytecode -r $(LOCK)
	touch $@

# Resolve the newest versions that pyproject.toml allows; torch stays at the oldest one supported, so CI proves it.
lock: $(ENV)/ready
	$(ENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --extra parquet --group dev \
		--constraint constraints.txt --no-header pyproject.toml --output-file $(LOCK)

clean:
	rm -rf $(CACHE) runs .pytest_cache .mypy_cache .ruff_cache
