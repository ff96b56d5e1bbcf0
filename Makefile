# Everything from a fresh machine with Python 3.11 or newer and make; all of it stays in .venv.

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
# The environment of make test-newest.
NEWEST := .venv-newest
# Where make test-newest finds its torch, a build without CUDA; empty: where pip finds the others.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Options for the command behind a target: make run ARGS="--port 9000", make test ARGS="-k poison".
ARGS ?=
# Processes of make test, more than cores: tests mostly wait. For a debugger: make test JOBS=0.
JOBS ?= 4
# The interpreter that .venv is made with; empty: the first that is new enough.
PYTHON ?=
PYTHONS = $(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14)

.DEFAULT_GOAL := help
.PHONY: help run test test-fast test-newest lint format bench soak clients images constraints clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*##/\1#/p' Makefile | awk -F'#' '{ printf "  make %-13s%s\n", $$1, $$2 }'

run: $(VENV)/run.stamp  ## Install, start Valkey, a worker and the API, show a sample job, keep serving
	@exec $(BIN)/embedq up --demo --with-parent $(ARGS)

test: $(VENV)/dev.stamp  ## Install and run the whole test suite on real processes
	@$(BIN)/python -m tests.browser
	@$(BIN)/python -m pytest --numprocesses $(JOBS) $(ARGS)

test-fast: $(VENV)/dev.stamp  ## Run the unit tests: no workers and no browser, about two minutes
	@$(BIN)/python -m pytest --numprocesses 2 -m fast --ignore tests/integration $(ARGS)

test-newest:  ## Run the test suite with the newest release of every library but torch
	@$(MAKE) --no-print-directory VENV=$(NEWEST) $(NEWEST)/bin/python
	@grep '^torch==' $(CONSTRAINTS) > $(NEWEST)/torch.txt
	$(NEWEST)/bin/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	  --requirement $(NEWEST)/torch.txt
	@$(NEWEST)/bin/python -m tests.newest > $(NEWEST)/newest.txt
	$(NEWEST)/bin/python -m pip install --upgrade --upgrade-strategy eager \
	  --constraint $(NEWEST)/torch.txt --requirement $(NEWEST)/newest.txt
	$(NEWEST)/bin/python -m pip install --no-deps --editable .
	@echo "Beyond the bounds in pyproject.toml:"
	@$(NEWEST)/bin/python -m pip check || true
	@$(NEWEST)/bin/python -m tests.browser
	@$(NEWEST)/bin/python -m pytest --numprocesses $(JOBS) $(ARGS)

lint: $(VENV)/dev.stamp  ## Style, types and the layers between modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp  ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(VENV)/dev.stamp  ## Measure throughput and latency beside the library and other servers
	@$(BIN)/python -m bench $(ARGS)

soak: $(VENV)/dev.stamp  ## Kill and fill everything under load, and count the outcomes
	@$(BIN)/python -m bench.soak $(or $(ARGS),all)

clients: $(VENV)/dev.stamp  ## Run OpenAI's clients, each in its own environment, against embedq up
	@$(BIN)/python -m tests.clients $(ARGS)

images: $(VENV)/dev.stamp  ## Build the container images, run them as docker-compose.yml says, and try them
	@$(BIN)/python -m tests.images $(ARGS)

constraints: $(VENV)/dev.stamp  ## Write the versions in .venv down as the ones to install
	@sed -n '/^#/p' $(CONSTRAINTS) > $(VENV)/constraints.txt
	@$(BIN)/python -m pip list --format=freeze --exclude embedq --exclude pip --exclude setuptools \
	  | sed 's/+cpu$$//' | tr '[:upper:]' '[:lower:]' >> $(VENV)/constraints.txt
	@mv $(VENV)/constraints.txt $(CONSTRAINTS)

clean:  ## Remove .venv, .venv-newest and all caches
	@# buildah may leave the layers of a build mounted.
	@sed -n 's|^[^ ]* \($(CURDIR)/build/images/[^ ]*\) .*|\1|p' /proc/mounts 2>/dev/null | xargs -r umount
	rm -rf $(VENV) $(NEWEST) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist *.egg-info
	find worker api tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is older than these two files when the installation no longer fits them.
$(VENV)/run.stamp: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing embedq into $(VENV); the first time this downloads PyTorch and takes minutes."
	$(BIN)/python -m pip install --constraint $(CONSTRAINTS) --editable '.[api,worker,local]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing embedq and its test tools into $(VENV); the first time takes minutes."
	$(BIN)/python -m pip install --constraint $(CONSTRAINTS) --editable '.[api,worker,local,dev]'
	@touch $@ $(VENV)/run.stamp

$(BIN)/python:
	@for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$($$python --version)"; \
	    "$$python" -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	    echo "$$python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "embedq needs Python 3.11 or newer; none of these is: $(PYTHONS)" >&2; \
	echo "Name another one with make PYTHON=/path/to/python3.12" >&2; \
	exit 1
