# make train   set up .venv and train TRPL on HalfCheetah for a few minutes
# make test    set up .venv and run every test
# make subset   the tests that are run with the oldest and the newest versions (docs/compatibility.md)
# make compiled   the tests of compiled code once more, as C++: `make test` only traces most of it
# make smoke   install the wheel somewhere else and use it, as a new user does
# make metaworld   look at each of Meta-World's fifty tasks: `make test` takes a few
# make reproduce   every table and figure of the papers at the scale smoke, and a look at what comes out
#
# PYTHON=python3.12 chooses the interpreter (3.10 or newer), VENV another folder than .venv.

PYTHON ?= python3
VENV ?= .venv
ENV ?= HalfCheetah-v5
TIMESTEPS ?= 200000
WORKERS ?= 2

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DOCS := $(VENV)/.installed-docs
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := sb3_trl tests examples benchmarks hatch_build.py
# Those that measure speed; the others train for hours and have arguments of their own.
BENCHMARKS := $(addprefix benchmarks/,projections.py training.py scaling.py)

# One look at everything that other versions of other packages can break.
SUBSET := $(addprefix tests/,algorithms/test_trpl.py algorithms/test_fixpo.py sb3/test_run.py rollouts/test_collection.py \
	deployment/test_export.py zoo/test_experiment.py)

# More threads than one cost time with networks of this size, and a lot of it when cores are shared.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup train test subset compiled smoke metaworld reproduce check format docs bench clean

help:
	@echo "make train   train TRPL on $(ENV) ($(TIMESTEPS) steps; TIMESTEPS=… ENV=…)"
	@echo "make test    run every test ($(WORKERS) at a time; WORKERS=…)"
	@echo "make compiled   the tests of compiled code once more, with the C++ that users run"
	@echo "make smoke   install the wheel in a fresh environment; train, tune, film and plot with it"
	@echo "make metaworld   look at each of Meta-World's fifty tasks"
	@echo "make reproduce   every table and figure of the papers, small, and a check of them"
	@echo "make check   ruff and mypy"
	@echo "make docs    build the documentation into site/"
	@echo "make bench   measure speed"
	@echo "make clean   remove .venv and everything that was built"

setup: $(INSTALLED)

# torch comes first, at its pinned version: asked for any other way, pip may choose a build several GB larger.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=…" if sys.version_info < (3, 10) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a few minutes, once"
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e ".[study,ray,dask,dev]"
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	$(PIP) -c constraints.txt -e ".[docs]"
	@touch $@

train: $(INSTALLED)
	$(BIN)/python examples/train.py --env $(ENV) --timesteps $(TIMESTEPS)

smoke:
	PYTHON=$(PYTHON) tests/wheel/smoke.sh

metaworld: $(INSTALLED)
	$(BIN)/python tests/metaworld/check.py

# From nothing: runs that are there would not be run again.
reproduce: $(INSTALLED)
	rm -rf reproduction/smoke
	$(BIN)/sb3-trl reproduce all --scale smoke
	$(BIN)/python tests/reproduction/check.py reproduction/smoke

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# In an environment of anybody's, VENV: nothing is installed.
subset:
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(SUBSET)

compiled: $(INSTALLED)
	$(BIN)/python -m pytest -q -n $(WORKERS) -m traced --inductor

check: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(INSTALLED_DOCS)
	$(BIN)/mkdocs build --strict

bench: $(INSTALLED)
	for script in $(BENCHMARKS); do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
