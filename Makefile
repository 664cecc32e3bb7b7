# The project's commands; `make` alone lists them.
#
# PYTHON    makes the environment (3.11 or newer)
# ARGS      goes to what is run: make test ARGS="tests/imaging -x", make serve ARGS="--models resnet50"
# CAMSERVE_* settings are the service's own and pass through.

PYTHON ?= python3
ENGINE ?= docker
VARIANT ?= cpu
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install serve test test-slow sweep lint bench openapi postman image clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## Make .venv with the service in it

serve: $(VENV)/.installed ## Start the service (HOST=127.0.0.1 PORT=8000)
	exec $(BIN)/camserve serve $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT)) $(ARGS)

test: $(VENV)/.installed-test ## Run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: ARGS += -m slow
test-slow: test ## Run what takes longer: oracle matrices of every method and network, galleries of models

sweep: $(VENV)/.installed-test ## Explain one network of every family (ARGS="--third 1/3", "coat_tiny cvt"), write docs/families.md
	$(BIN)/python -m tests.sweep $(ARGS)
	$(BIN)/python -m pytest -m sweep tests/sweep

lint: $(VENV)/.installed-test ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench ## Measure, side by side with the peers
	$(BIN)/python -m tests.bench $(ARGS)

openapi: $(VENV)/.installed ## Write openapi.md anew, from the app's schema
	$(BIN)/python -m tests.openapi_reference > openapi.md.new
	mv openapi.md.new openapi.md

postman: $(VENV)/.installed ## Write the Postman collection anew, from the app's schema (needs npm)
	$(BIN)/python -m tests.postman_collection

image: ## Build the image (VARIANT=cpu or cuda, ENGINE=docker or podman, TORCH_INDEX: see the Dockerfile)
	$(ENGINE) build --tag camserve:$(VERSION)-$(VARIANT) --build-arg VARIANT=$(VARIANT) --build-arg VERSION=$(VERSION) \
		$(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) --build-arg REVISION=$(shell git rev-parse HEAD) $(ARGS) .

clean: ## Remove caches and whatever was built; .venv stays
	rm -rf build dist htmlcov out *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find service tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed again only when pyproject.toml has changed.

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $(VENV)/.installed $(VENV)/.installed-test $@
