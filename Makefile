# Everything a contributor types. Each target bootstraps .venv by itself; a second run rebuilds nothing.

PYTHON ?= python3
UV := .uv/bin/uv
RUN := .venv/bin/python
TESTS ?= tests
# Many tests wait for processes, so that two at a time are quicker on any machine; WORKERS=0 is one after the other.
WORKERS ?= 2

# The image: its name, its base (default: in the Containerfile), the program that builds it, and more options for that.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= timestep:$(VERSION)
BASE ?=
BUILDER ?= $(shell for name in buildah docker podman; do command -v $$name && break; done)
IMAGE_BUILD_ARGS ?=

.PHONY: demo test test-long test-k3s image check verify bench chaos lock clean

demo: .venv/.ready  ## the whole service: one step thinks, the same step learns, and thinks again
	@$(RUN) examples/demo.py

test: .venv/.ready  ## the whole suite on real parts; what can't run here skips with its reason
	@$(RUN) -m pytest $(TESTS) -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-long: .venv/.ready  ## what takes minutes
	@$(RUN) -m pytest $(TESTS) -m long $(PYTEST_ARGS)

test-k3s: .venv/.ready  ## the chart on a cluster of its own: installed, used, damaged, upgraded, removed; one table
	@$(RUN) -m tests.k3s $(K3S_ARGS)

image:  ## the image of all roles: IMAGE=name:tag BASE=image IMAGE_BUILD_ARGS='…'
	@test -n '$(BUILDER)' || { echo "buildah, docker or podman is needed. Install one: apt install buildah" >&2; exit 1; }
	@$(BUILDER) build $(if $(findstring docker,$(BUILDER)),,--layers --ignorefile deployments/image/Containerfile.dockerignore) \
	  $(if $(BASE),--build-arg BASE='$(BASE)') $(IMAGE_BUILD_ARGS) \
	  --file deployments/image/Containerfile --tag '$(IMAGE)' .

chaos: .venv/.ready  ## 40 kills of processes, servers, the database and the whole, and what was lost: the table in the README
	@$(RUN) -m tests.chaos $(KILLS) $(SEED)

verify: .venv/.ready  ## suites that nobody here wrote judge the HTTP API: one table; VERIFY_ARGS='--suite openai-python'
	@$(RUN) -m timestep.verify $(VERIFY_ARGS)

check: .venv/.ready  ## format, lint, strict types
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy

bench: .venv/.ready  ## the figures in the README, side by side in one run
	@$(RUN) -m benchmarks

lock: .uv/bin/uv  ## after a change of pyproject.toml
	@$(UV) lock

clean:
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache

.venv/.ready: pyproject.toml uv.lock | .uv/bin/uv
	@command -v cc >/dev/null && command -v c++ >/dev/null || \
	  { echo "A C and C++ compiler is needed for llama.cpp. Install one: apt install build-essential, or xcode-select --install" >&2; exit 1; }
	@echo "Installing into .venv (llama.cpp is compiled once per machine: about 3 minutes on 2 cores)"
	@$(UV) sync --frozen --quiet --compile-bytecode --python $(PYTHON)
	@touch $@

.uv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed as '$(PYTHON)'. Install one, or name it: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv .uv || { echo "Python's venv module is needed. Install it: apt install python3-venv" >&2; rm -rf .uv; exit 1; }
	@.uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1' || { rm -rf .uv; exit 1; }
