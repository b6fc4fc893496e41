# One verb per chore; `make` alone lists them. Each one sets up what it needs.

# The interpreter that .venv is made with: 3.10 or newer.
PYTHON ?= python3
EXTRAS ?= train,serve,sign,tables,medical,text,dev
# Handed on: INSTALL_ARGS to the installer, PYTEST_ARGS to pytest, BENCH_ARGS to the benchmarks.
INSTALL_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
# An interpreter with another onnxruntime and onnx (numpy, safetensors), for make torture to try as well.
OTHER_PYTHON ?=
# The version that docs/examples/finish.js is tested with.
ONNXRUNTIME_NODE ?= 1.30.0

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# uv where it runs, otherwise venv and pip; `make UV= setup` forces pip.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)

# pip would compile modules one after another; here all cores do, and none those that nobody loads.
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --no-compile \
	--disable-pip-version-check) $(INSTALL_ARGS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench bench-edge bench-serve bench-train torture pins sbom audit docs node clean

help: ## list the chores
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS=@ read -r verb what; do \
		printf '%-18s %s\n' "$$verb" "$$what"; done

setup: $(STAMP) ## make .venv with everything in it, at the tested versions

$(STAMP): pyproject.toml constraints.txt
ifneq ($(UV),)
	[ -x $(BIN)/python ] || $(UV) venv --quiet --clear --no-python-downloads --python "$(PYTHON)" $(VENV)
else
	"$(PYTHON)" -m venv $(VENV)
endif
	$(INSTALL) -e '.[$(EXTRAS)]'
	$(if $(UV),,$(BIN)/python -m compileall -q -j 0 -x '/tests?/|transformers/models/' $(VENV)/lib >/dev/null || true)
	@touch $@

demo: $(STAMP) ## train, export, deliver and finish on real digits, on a CPU; pictures in runs/demo
	$(BIN)/collafuse demo -o runs/demo --overwrite

# A process per core with a thread each: the networks of the tests are too small for more. Files in their order, which
# tests/conftest.py chooses so that no core waits for a long one at the end. Bytecode is written whatever the shell says:
# the many processes of the tests would compile our modules anew otherwise.
test: $(STAMP) ## run the tests (PYTEST_ARGS="-k cut" for some of them)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

torture: $(STAMP) ## the tests that try to break everything, at length, one after another; half an hour
	$(INSTALL) -e '.[$(EXTRAS),fuzz,ray]'
	OMP_NUM_THREADS=1 OTHER_PYTHON="$(OTHER_PYTHON)" $(BIN)/python -m pytest -m torture $(PYTEST_ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m hypothesis --hypothesis-profile torture tests/core tests/config

check: $(STAMP) ## lint, formatting, types and import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## measure against peers, side by side
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-edge: $(STAMP) ## measure the device side against diffusers and the reference (RUN=a run, or DATA=images)
	$(INSTALL) -e '.[$(EXTRAS),bench]'
	$(BIN)/python -m benchmarks.edge $(if $(RUN),--run "$(RUN)") $(if $(DATA),--data "$(DATA)") $(BENCH_ARGS)

# One thread for a step: the clients of the measurement need the other core.
bench-serve: $(STAMP) ## measure the service under load, overload and slow clients (RUN=a run); a quarter of an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.serving $(if $(RUN),--run "$(RUN)") $(BENCH_ARGS)

bench-train: $(STAMP) ## measure training and sampling against diffusers and denoising-diffusion-pytorch
	$(INSTALL) -e '.[$(EXTRAS),bench]'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.train $(BENCH_ARGS)

docs: $(STAMP) ## check that the documentation says what the code does
	$(BIN)/python -m pytest tests/test_docs.py -q

TOOLS := .tools
$(TOOLS)/.installed:
	"$(PYTHON)" -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet --disable-pip-version-check uv cyclonedx-bom pip-audit
	@touch $@

pins: $(TOOLS)/.installed ## write what a device installs, with hashes, into pins/ (asks the package index)
	UV=$(TOOLS)/bin/uv pins/make.sh

sbom: $(TOOLS)/.installed ## list the parts of a device install as CycloneDX, in build/sbom.json
	mkdir -p build
	$(TOOLS)/bin/cyclonedx-py requirements pins/device-sign.txt --pyproject pyproject.toml --output-format JSON \
		--output-file build/sbom.json

audit: $(TOOLS)/.installed ## look up known vulnerabilities of a device install; says so where it cannot
	$(TOOLS)/bin/python -m pins.audit pins/device-sign.txt

node: ## fetch onnxruntime-node into .node (about 300 MB), to test finishing from JavaScript
	npm install --ignore-scripts --no-audit --no-fund --prefix .node onnxruntime-node@$(ONNXRUNTIME_NODE)

clean: ## remove caches and build output (.venv and runs stay)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -print | xargs rm -rf
