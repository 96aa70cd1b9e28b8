# Two commands matter: `make quickstart` and `make test`. Everything else is a part of them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart install test lint types tests tests-pure tests-ray clean

quickstart: $(STAMP)
	$(BIN)/python jobs/lifecycle.py

install: $(STAMP)

# torch comes first: a resolver that meets it as somebody's dependency may pick another build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

test: lint types tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

# What uses Ray waits a good deal: the other tests fill its pauses. Two parts with Ray would disturb each other's clusters.
tests: $(STAMP)
	$(MAKE) -j2 tests-ray tests-pure

tests-pure: $(STAMP)
	$(BIN)/python -m pytest -m "not ray and not serve"

tests-ray: $(STAMP)
	$(BIN)/python -m pytest -m "ray or serve"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
