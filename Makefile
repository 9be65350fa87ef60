# Two commands do everything on a machine that has Python (>= 3.11) and make:
#
#   make demo    a very small model speaks and listens, each stage checked
#   make test    linter, types and all tests
#
# PYTHON chooses the interpreter. The PyTorch of the plain package index is a CUDA build of some GB
# on Linux; for the small CPU build point pip at PyTorch's own CPU index (README, "Two commands").

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# what mypy reads: the folders under the name by which they are imported
TYPES := build/types/mimo_edge
# pip's cache lies here: nothing is left in HOME. PIP_CACHE_DIR puts it where several checkouts share it
export PIP_CACHE_DIR ?= $(CURDIR)/build/pip
FOLDERS := mimo_ref export engines runtime parity scripts

.PHONY: demo test browser clients lint system clean

demo: $(READY)
	$(BIN)/mimo-edge demo --out out/demo

# a file of tests stays on one core, and so do the libraries that it calls
test: $(READY) lint system
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# the server's page, driven in a browser
browser: $(READY) program-chromium
	$(BIN)/python -m pytest -m browser

# other people's clients, and Ray Serve, in an environment of their own, for they bring much
clients:
	$(PYTHON) -m venv build/clients
	build/clients/bin/python -m pip install --quiet --editable ".[cpu,export,server,wyoming,clients,ray]"
	build/clients/bin/python -m pytest -m "clients or ray" tests/server

# what the tests need beside Python packages: nano's voices are espeak-ng's
system: program-espeak-ng

# a program that has the name of its package
program-%:
	@command -v $* >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends $*; \
	  else \
	    echo "the tests need $*; install it, for example: sudo apt-get install $*" >&2; \
	    exit 1; \
	  fi; }

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(TYPES)
	for folder in $(FOLDERS); do ln -sfn ../../../$$folder $(TYPES)/$$folder; done
	for file in mimo_edge/*; do ln -sf ../../../$$file $(TYPES)/; done
	$(BIN)/mypy

$(READY): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev,trt,report,cpu]"
	touch $(READY)

clean:
	rm -rf $(VENV) build out *.egg-info .pytest_cache .mypy_cache .ruff_cache
