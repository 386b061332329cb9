# Two commands do all set-up: `make demo` and `make test`. Each makes a virtual environment of its own from the locks in
# requirements/ (every version pinned, every file checked by hash); nothing else is downloaded, nothing needs root.
# Stamp files keep a second run quick.

PYTHON ?= python3

RUN := .venv-run
DEV := .venv
PIP := bin/python -m pip --disable-pip-version-check --quiet
# The locks are complete: nothing is resolved anew, so that a release of today cannot come between (--no-deps).
LOCKED := install --no-deps --no-build-isolation --require-hashes --requirement
# The build backend is in the locks, so that building needs no download of its own (--no-build-isolation).
EDITABLE := install --no-deps --no-build-isolation --editable .

# Containers set it, and then each process that the tests start compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

SOURCES := aiomigrate tests fuzz $(wildcard docs examples benchmarks)
COMPILE := $(DEV)/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-header \
	--no-emit-index-url --no-emit-find-links --no-emit-options --no-emit-trusted-host

# What makes pages from the source (`make pages`).
MADE := make_command_line make_figures make_metrics make_protocol_extensions make_protocol_sequences make_protocol_states make_rest

.PHONY: demo test lint docs pages pictures format faults soak fuzz figures fresh lock clean

# What `make soak` does: migrations over bad links, and round trips of a guest that checks its own memory.
MIGRATIONS ?= 10000
ROUND_TRIPS ?= 500
# What `make fuzz` does with each of its targets (`make fuzz TARGETS=receive SECONDS=3600 SEED=7`).
TARGETS ?=
RUNS ?= 1000000
SECONDS ?= 600

demo: $(RUN)/.stamp
	$(RUN)/bin/aiomigrate demo

test: $(DEV)/.stamp
	$(DEV)/bin/pytest -n 2 --dist worksteal --cov --cov-report=
	$(DEV)/bin/coverage report --fail-under=95

lint: $(DEV)/.stamp
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy $(SOURCES)
	$(DEV)/bin/lint-imports

# The variable silences an announcement of the theme's authors, which --strict does not take for a warning.
docs: $(DEV)/.stamp
	NO_MKDOCS_2_WARNING=1 $(DEV)/bin/mkdocs build --strict

# Pages and pictures that are made from the source, where nothing is measured; tests compare them with it.
pages: $(DEV)/.stamp
	set -e; for maker in $(MADE); do $(DEV)/bin/python -m docs.$$maker; done

# The page and the terminal as they are seen in the docs: needs Debian's chromium, chromium-driver and tmux.
pictures: $(DEV)/.stamp
	$(DEV)/bin/python -m docs.make_page_pictures
	$(DEV)/bin/python -m docs.make_terminal_pictures

format: $(DEV)/.stamp
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

faults: $(DEV)/.stamp
	$(DEV)/bin/python -m tests.faults.matrix
	$(DEV)/bin/python -m tests.faults.kills
	$(DEV)/bin/python -m docs.make_figures

soak: $(DEV)/.stamp
	$(DEV)/bin/python -m tests.faults.soak --migrations $(MIGRATIONS) $(if $(SEED),--seed $(SEED))
	$(DEV)/bin/python -m tests.faults.tiny_soak --round-trips $(ROUND_TRIPS) $(if $(SEED),--seed $(SEED))
	$(DEV)/bin/python -m docs.make_figures

fuzz: $(DEV)/.stamp
	$(DEV)/bin/python -m fuzz --runs $(RUNS) --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(TARGETS)
	$(DEV)/bin/python -m docs.make_figures

# What this machine can measure, or what ONLY names (`make figures ONLY="tls loopback"`), and all pages made from results.
figures: $(DEV)/.stamp
	$(DEV)/bin/python -m benchmarks $(ONLY)

# A fresh clone without caches: the demo and every line of the tutorial (`make fresh ARGUMENTS=--test`: the tests, too).
fresh: $(DEV)/.stamp
	$(DEV)/bin/python -m tests.fresh_clone $(ARGUMENTS)

# Run under the oldest supported Python. Existing pins are kept where they still fit: remove a lock to take newer versions.
lock: $(DEV)/.stamp
	$(COMPILE) --output-file requirements/setup.txt requirements/setup.in
	$(COMPILE) --build-deps-for editable --extra all --output-file requirements/run.txt pyproject.toml
	$(COMPILE) --build-deps-for editable --extra all --extra dev --output-file requirements/dev.txt pyproject.toml

# The library for the page's plots, and the checker of its tests, as npm has them (vendor.json beside them says which).
.PHONY: vendor
vendor: $(DEV)/.stamp
	$(DEV)/bin/python -m tests.web.vendoring

clean:
	rm -rf $(RUN) $(DEV) .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +

# A half-made environment has no stamp and is made again from nothing.
$(RUN)/.stamp: requirements/run.txt pyproject.toml aiomigrate/_version.py
	rm -rf $(RUN)
	$(PYTHON) -m venv $(RUN)
	$(RUN)/$(PIP) $(LOCKED) requirements/run.txt
	$(RUN)/$(PIP) $(EDITABLE)
	touch $@

$(DEV)/.stamp: requirements/setup.txt requirements/dev.txt pyproject.toml aiomigrate/_version.py
	rm -rf $(DEV)
	$(PYTHON) -m venv $(DEV)
	$(DEV)/$(PIP) $(LOCKED) requirements/setup.txt
	$(DEV)/$(PIP) $(LOCKED) requirements/dev.txt
	$(DEV)/$(PIP) $(EDITABLE)
	touch $@
