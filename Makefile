# `make demo` trains and evaluates a network, `make demo-detection` a detector, `make test` runs the tests, `make commands`
# runs all commands of the documentation, `make docs` builds it. Each target installs the dependencies first.
# `make converters` adds the converters to other frameworks' formats, and runs their tests.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/setup.stamp
# For CPU-only wheels of torch: make setup PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
DEMO := output/demo
# Parallel test processes, with one thread each
TEST_WORKERS ?= 2
# Without restarts: after a crash, pytest-xdist 3.8 may wait forever for tests of the replaced process
PARALLEL = -n $(TEST_WORKERS) --max-worker-restart 0

.PHONY: setup chromium demo demo-detection test commands converters harden lint format docs notebook clean

setup: $(STAMP)

# Recreated only when one of these files changes
$(STAMP): setup.py tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: Python 3.10 or newer is required: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot create a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing torch and the other dependencies into $(VENV); this takes a few minutes the first time"
	@$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) torch torchvision
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@# trackers requires the OpenCV with windows, which needs libGL; the one without has the same files
	@$(BIN)/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps opencv-python-headless
	@$(BIN)/python tools/install_detectron2.py
	@touch $(STAMP)

# Debian's Chromium for the tests of exported pages, if it is missing and can be installed; they are skipped without it
chromium:
	@command -v chromium >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null \
	    || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
	    || echo "Chromium cannot be installed: its tests will be skipped"

demo: $(STAMP)
	@rm -rf $(DEMO)
	$(BIN)/python tools/train_net.py --config configs/digits/fbnetv3_digits.yaml OUTPUT_DIR $(DEMO)

demo-detection: $(STAMP)
	@rm -rf $(DEMO)-detection
	$(BIN)/python tools/train_net.py --config configs/coco/faster_rcnn_fbnetv3_digits_C4.yaml OUTPUT_DIR $(DEMO)-detection

# Ends with the coverage of each file in fbnetv3/ that is not fully covered
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --dist loadfile --ignore tests/test_commands.py \
	    --cov=fbnetv3 --cov-report=term:skip-covered --cov-fail-under=90

# Every command in the README and docs, shortened
commands: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) tests/test_commands.py

# The export formats whose packages `make setup` leaves out. Their tests are skipped without them
CONVERTERS_STAMP := $(VENV)/converters.stamp
converters: $(CONVERTERS_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --dist loadfile tests/deploy \
	    -k "converters or litert or coreml or ncnn or openvino"

$(CONVERTERS_STAMP): $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[converters]'
	@# litert-torch requires xdsl, which excludes typing_extensions since 4.13 but works with them; jupyter needs them
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'typing_extensions>=4.13'
	@touch $(CONVERTERS_STAMP)

# tests/hardening with 25 times as many cases, for example 75 kills of each kind: half an hour
HARDEN ?= 25
harden: $(STAMP)
	FBNETV3_HARDENING=$(HARDEN) $(BIN)/python -m pytest tests/hardening --timeout 7200 -rA -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell fbnetv3 model_zoo tools configs tests benchmarks docs README.md CHANGELOG.md
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean
	@echo "the site: output/site/index.html"

# Execute the tour and save its outputs
notebook: $(STAMP)
	$(BIN)/python docs/run_notebook.py

clean:
	rm -rf $(VENV) output build dist *.egg-info
