# Two commands: `make demo` trains and evaluates a network, `make test` runs the tests. Both set everything up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/setup.stamp
# A wheel for the CPU where pip's default brings CUDA: make setup PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
DEMO := output/demo

.PHONY: setup demo test lint format clean

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

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) output build dist *.egg-info
