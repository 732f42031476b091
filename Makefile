# Every target sets itself up: `make run` and `make test` are all that a fresh checkout needs.
# Debian 12: apt-get install make python3 python3-venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# The locks are complete, so nothing is resolved here; only wheels, so no compiler is asked for.
INSTALL := $(PIP) install --quiet --no-deps --require-hashes --only-binary :all:
APT := apt-get install -y make python3 python3-venv

.DEFAULT_GOAL := help
.PHONY: help venv run test test-slow check format lock config-example bench binary deb oracle fuse clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.dev-installed ## Create .venv with everything; the command is then .venv/bin/overlayd

run: $(VENV)/.base-installed ## Start a node, stream real data through it, show it arriving (Ctrl-C ends it)
	@$(BIN)/overlayd run --demo

test: $(VENV)/.dev-installed ## Run the quick tests (a few minutes)
	@$(BIN)/python tests/side_by_side.py

test-slow: $(VENV)/.dev-installed ## Run the slow tests: long crash and load runs
	@OVERLAYD_EXPLORE=1 $(BIN)/python -m pytest -q -m slow

check: $(VENV)/.dev-installed ## Lint, formatting, types, import floors, lock files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/project/test_locks.py

format: $(VENV)/.dev-installed ## Format the code and sort its imports
	$(BIN)/ruff check --select I --fix
	$(BIN)/ruff format

config-example: $(VENV)/.base-installed ## Write config.example.toml anew from the settings
	$(BIN)/python -m overlayd.config.example > config.example.toml.new
	mv config.example.toml.new config.example.toml

bench: $(VENV)/.bench-installed ## Measure the node beside its peers (PART=publish|batch|fanout|replay|sessions|fairness|busy|growth|deliveries|commitments|confirmed|access|all)
	@$(BIN)/python -m benchmarks.compare $(or $(PART),all)

binary: build/package-env/.installed build/sbom-env/.installed ## Build dist/overlayd, one file with the interpreter and everything else in it
	@packaging/build

deb: binary ## Build a Debian package with the same tree unpacked, units, manual and completion
	@packaging/build-deb

oracle: $(VENV)/.oracle-installed ## Install the chain libraries that tests compare ours with (their licence restricts use; never shipped)

fuse: $(VENV)/.dev-installed ## Build the optional file system that loses power (needs a compiler)
	@pkg-config --exists fuse3 2>/dev/null || { \
	  echo "The power-loss tests need libfuse 3. On Debian:" >&2; \
	  echo "  apt-get install -y fuse3 libfuse3-dev pkg-config gcc python3-dev" >&2; exit 2; }
	@$(INSTALL) -r requirements/fuse-build.lock
	$(PIP) install --quiet --no-deps --require-hashes --no-build-isolation -r requirements/fuse.lock

clean: ## Remove .venv, caches and build products (not ./overlayd-data)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find overlayd tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment ----

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "There is no $(PYTHON) here. On Debian 12:" >&2; echo "  $(APT)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "overlayd needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). On Debian 12:" >&2; \
	  echo "  $(APT)" >&2; echo "or name another one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) can't make virtual environments: ensurepip is missing. On Debian 12:" >&2; \
	  echo "  $(APT)" >&2; exit 2; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.base-installed: requirements/build.lock requirements/base.lock requirements/demo.lock pyproject.toml | $(VENV)/.python
	@echo "installing the pinned packages into $(VENV)"
	@$(INSTALL) -r requirements/build.lock -r requirements/base.lock -r requirements/demo.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev-installed: requirements/dev.lock $(VENV)/.base-installed
	@echo "installing the pinned tools for tests and checks"
	@$(INSTALL) -r requirements/dev.lock
	@touch $@

$(VENV)/.bench-installed: requirements/bench.lock $(VENV)/.dev-installed
	@echo "installing the pinned packages of the benchmarks"
	@$(INSTALL) -r requirements/bench.lock
	@touch $@

# An interpreter of its own, without the tools for tests, so that nothing but the base packages can go in.
build/package-env/.installed: requirements/base.lock requirements/build.lock requirements/packaging.lock | $(VENV)/.python
	@$(PYTHON) -c 'import sys, sysconfig; sys.exit(not sysconfig.get_config_var("Py_ENABLE_SHARED"))' || { \
	  echo "packing needs Python's shared library. On Debian 12:" >&2; \
	  echo "  apt-get install -y libpython3.11" >&2; exit 2; }
	@$(PYTHON) -m venv build/package-env
	@build/package-env/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
	  --require-hashes --only-binary :all: -r requirements/base.lock -r requirements/packaging.lock
	@touch $@

build/sbom-env/.installed: requirements/sbom.lock | $(VENV)/.python
	@$(PYTHON) -m venv build/sbom-env
	@build/sbom-env/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
	  --require-hashes --only-binary :all: -r requirements/sbom.lock
	@touch $@

$(VENV)/.oracle-installed: requirements/oracle.lock $(VENV)/.dev-installed
	@$(INSTALL) -r requirements/oracle.lock
	@touch $@

# ---- the locks: hashes of every file of a release, no index address ----

# Whatever pip is configured to look at on this machine must not show in the locks.
CLEAN_PIP := env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL -u PIP_INDEX_URL -u PIP_NO_INDEX PIP_CONFIG_FILE=/dev/null
COMPILE := $(CLEAN_PIP) CUSTOM_COMPILE_COMMAND="make lock" build/lock-tools/bin/pip-compile --quiet --generate-hashes \
  --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options

build/lock-tools/.installed: requirements/tools.lock | $(VENV)/.python
	@$(PYTHON) -m venv build/lock-tools
	@build/lock-tools/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	  --only-binary :all: -r requirements/tools.lock
	@touch $@

lock: build/lock-tools/.installed ## Resolve the requirements anew; UPGRADE=1 takes newer versions
	$(COMPILE) $(if $(UPGRADE),--upgrade) requirements/build.in -o requirements/build.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) pyproject.toml -o requirements/base.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) requirements/dev.in -o requirements/dev.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) requirements/oracle.in -o requirements/oracle.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) requirements/bench.in -o requirements/bench.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) requirements/fuse-build.in -o requirements/fuse-build.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) requirements/fuse.in -o requirements/fuse.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) requirements/packaging.in -o requirements/packaging.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) requirements/parquet.in -o requirements/parquet.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) requirements/sbom.in -o requirements/sbom.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) requirements/tools.in -o requirements/tools.lock
	cp requirements/demo.lock build/demo-with-dependencies.lock
	$(COMPILE) $(if $(UPGRADE),--upgrade) requirements/demo.in -o build/demo-with-dependencies.lock
	awk '/^#/ { print } /^[a-z]/ { keep = /^vega-datasets==/ } keep' build/demo-with-dependencies.lock > requirements/demo.lock
