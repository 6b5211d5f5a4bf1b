# `make demo` trains and evaluates a network, `make demo-detection` a detector, `make test` runs the tests. All of them
# set everything up first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/setup.stamp
# A wheel for the CPU where pip's default brings CUDA: make setup PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
DEMO := output/demo

.PHONY: setup demo demo-detection test lint format clean

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

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) output build dist *.egg-info
