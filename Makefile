# `make demo` trains and evaluates a network, `make demo-detection` a detector, `make test` runs the tests,
# `make commands` all commands of the documentation, `make docs` builds it. All of them set everything up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/setup.stamp
# A wheel for the CPU where pip's default brings CUDA: make setup PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
DEMO := output/demo
# Processes that share the tests, each with one thread.
TEST_WORKERS ?= 2

.PHONY: setup demo demo-detection test commands harden lint format docs notebook clean

setup: $(STAMP)

# Made anew only when one of these files changes.
$(STAMP): setup.py tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "installing torch and the other dependencies into $(VENV), a few minutes the first time"
	@$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) torch torchvision
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@$(BIN)/python tools/install_detectron2.py
	@touch $(STAMP)

demo: $(STAMP)
	@rm -rf $(DEMO)
	$(BIN)/python tools/train_net.py --config configs/digits/fbnetv3_digits.yaml OUTPUT_DIR $(DEMO)

demo-detection: $(STAMP)
	@rm -rf $(DEMO)-detection
	$(BIN)/python tools/train_net.py --config configs/coco/faster_rcnn_fbnetv3_digits_C4.yaml OUTPUT_DIR $(DEMO)-detection

# Says at its end how much of each file of fbnetv3/ the tests have run, of those where they have not run all.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --ignore tests/test_commands.py \
	    --cov=fbnetv3 --cov-report=term:skip-covered --cov-fail-under=90

# Every command of README and docs, made short.
commands: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) tests/test_commands.py

# The tests of tests/hardening at length: half an hour. HARDEN=25 is 75 kills and more of each kind.
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

# Runs the tour again and saves its outputs in it.
notebook: $(STAMP)
	$(BIN)/python docs/run_notebook.py

clean:
	rm -rf $(VENV) output build dist *.egg-info
