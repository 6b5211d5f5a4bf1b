"""Fixtures shared by all tests."""

import contextlib
import os
import signal

import pytest
import torch

from fbnetv3.arch.arch_registry import ARCHS
from fbnetv3.arch.block_specs import ACTIVATIONS, BLOCK_SPECS, SE_GATES
from fbnetv3.config.recipe import OPTIMIZERS
from fbnetv3.data.datasets import DATASETS
from fbnetv3.data.transforms import AUGMENTATIONS, CROPS
from fbnetv3.deploy.formats.export_format import FORMATS
from fbnetv3.errors import MissingPackageError
from fbnetv3.modeling.blocks import BLOCKS
from fbnetv3.nars.evaluators.evaluator_registry import EVALUATORS
from fbnetv3.nars.execution.executors import EXECUTORS
from fbnetv3.training.losses import LOSSES
from fbnetv3.training.schedules import SCHEDULES
from fbnetv3.training.tracking.trackers import TRACKERS

REGISTRIES = (
    ARCHS, ACTIVATIONS, BLOCK_SPECS, SE_GATES, BLOCKS, OPTIMIZERS, SCHEDULES, LOSSES, DATASETS, CROPS, AUGMENTATIONS,
    FORMATS, EVALUATORS, EXECUTORS, TRACKERS,
)  # fmt: skip
with contextlib.suppress(MissingPackageError):  # detectron2 is optional
    from fbnetv3.detection.data.formats import ANNOTATION_FORMATS
    from fbnetv3.detection.inference.outputs.detection_outputs import DETECTION_OUTPUTS

    REGISTRIES += (ANNOTATION_FORMATS, DETECTION_OUTPUTS)

# Processes started in the background ignore Ctrl-C, and so would everything that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


GPU_TESTS = "gpu"  # the marker, and the expression after -m that selects its tests alone


def pytest_configure(config):
    """Hide GPUs from this process and those it starts, so that tests do the same on every machine."""
    if config.option.markexpr != GPU_TESTS:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config, items):
    """Skip the tests that need a GPU where there is none, or where it is hidden."""
    if config.option.markexpr == GPU_TESTS and torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker(GPU_TESTS):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and `pytest -m gpu`"))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Undo a test's registrations, and forget the user modules that it imported."""
    monkeypatch.setattr("fbnetv3.utils.imports._user_modules", [])
    before = {registry: set(registry.names()) for registry in REGISTRIES}
    yield
    for registry, names in before.items():
        for name in set(registry.names()) - names:
            registry.remove(name)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use a separate download cache for each test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FBNETV3_CACHE", str(folder))
    return folder
