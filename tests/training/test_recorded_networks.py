"""Configs of evaluations and training runs, filled from what checkpoints record."""

import logging
from dataclasses import replace

import pytest
import torch

from fbnetv3.arch import configs_folder, get_arch
from fbnetv3.config import load_config
from fbnetv3.data import Preprocessing
from fbnetv3.errors import UnknownNameError, UsageError
from fbnetv3.training.builders import preprocessing_from_config
from fbnetv3.training.recorded_networks import (
    config_from_record,
    start_from_weights,
    use_recorded_network,
)
from fbnetv3.training.run_state.network_record import NetworkRecord, record_from_metadata
from fbnetv3.utils.nested_keys import flatten

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
PREPROCESSING = Preprocessing(40, 50, (0.1,), (0.2,), "bicubic")


@pytest.fixture
def record():
    arch = replace(get_arch("fbnetv3_digits"), name="somebodys_own")
    config = flatten(load_config(DIGITS, ["SOLVER.LR", "0.07"]))
    return NetworkRecord(arch, 1, ("a", "b"), PREPROCESSING, {**config, "IMPORTS": ["my_blocks"]})


def test_a_record_survives_a_checkpoint(record):
    for checkpoint in (record.to_metadata(), {"model": {}, "metadata": record.to_metadata()}):
        assert record_from_metadata(checkpoint, "x.pth") == record


@pytest.mark.parametrize(
    "checkpoint", [{}, {"state_dict": {}}, {"metadata": 3}, {"metadata": {"epoch": 1}}]
)
def test_foreign_checkpoints_have_no_record(checkpoint):
    assert record_from_metadata(checkpoint, "x.pth") is None


def test_evaluation_uses_the_preprocessing_of_the_training(record):
    cfg, arch = use_recorded_network(load_config(DIGITS), record, "x.pth")
    assert arch == record.arch
    assert preprocessing_from_config(cfg, arch) == PREPROCESSING


def test_another_resolution_keeps_the_ratio_of_resizing(record):
    cfg = load_config(DIGITS, ["INPUT.RESOLUTION", "64"])
    cfg, arch = use_recorded_network(cfg, record, "x.pth", ["INPUT.RESOLUTION"])
    assert preprocessing_from_config(cfg, arch) == replace(PREPROCESSING, resolution=64, resize=80)


def test_only_what_differs_is_said(record, caplog):
    caplog.set_level(logging.INFO)
    cfg = load_config(DIGITS, ["INPUT.STD", "[0.2]", "INPUT.INTERPOLATION", "nearest"])
    use_recorded_network(cfg, record, "x.pth", ["INPUT.INTERPOLATION"])
    assert sorted(caplog.messages) == [
        "INPUT.INTERPOLATION nearest, as given: x.pth was trained with bicubic",
        "INPUT.MEAN [0.1], as x.pth was trained: the config has [0.5]",
        "MODEL.ARCH somebodys_own, as x.pth records: the config has fbnetv3_digits",
        "MODEL.NUM_CLASSES 2, as x.pth was trained: the config has 10",
    ]


@pytest.fixture
def weights(record, tmp_path):
    """Return the path of a checkpoint with the record."""
    torch.save({"model": {}, **record.to_metadata()}, tmp_path / "x.pth")
    return str(tmp_path / "x.pth")


def test_training_fills_only_what_is_empty(record, weights, tmp_path):
    cfg = load_config(DIGITS, ["MODEL.ARCH", "", "INPUT.MEAN", "[]", "MODEL.WEIGHTS", weights])
    filled, arch, read = start_from_weights(cfg)
    assert (filled.INPUT.MEAN, filled.INPUT.STD, arch, read) == ([0.1], [0.5], record.arch, record)
    # A resumed run reads its own config, which has the name
    assert start_from_weights(filled)[1] == record.arch
    torch.save({"model": {}}, weights)
    with pytest.raises(UnknownNameError, match="somebodys_own"):
        start_from_weights(filled)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["MODEL.ARCH", ""], "MODEL.ARCH is empty, and MODEL.WEIGHTS is empty, too: set MODEL.ARCH"),
        (["INPUT.STD", "[]"], "INPUT.STD is empty, and MODEL.WEIGHTS is empty, too"),
        (["MODEL.IN_CHANS", "0"], "MODEL.IN_CHANS is empty"),
    ],
)
def test_empty_keys_need_a_record(overrides, message):
    with pytest.raises(UsageError, match=message):
        start_from_weights(load_config(DIGITS, overrides))


def test_foreign_weights_do_not_fill_keys(tmp_path):
    torch.save({"model": {}}, tmp_path / "x.pth")
    cfg = load_config(DIGITS, ["INPUT.STD", "[]", "MODEL.WEIGHTS", str(tmp_path / "x.pth")])
    with pytest.raises(UsageError, match="INPUT.STD is empty, and .*x.pth does not record it"):
        start_from_weights(cfg)


def test_normalization_of_another_number_of_channels(weights):
    overrides = ["MODEL.IN_CHANS", "3", "INPUT.MEAN", "[]", "INPUT.STD", "[1, 1, 1]"]
    cfg = load_config(DIGITS, [*overrides, "MODEL.WEIGHTS", weights])
    with pytest.raises(UsageError, match="x.pth has 1 values, but MODEL.IN_CHANS is 3: set INPUT.MEAN"):
        start_from_weights(cfg)


def test_the_recorded_config_imports_no_modules(record, caplog):
    caplog.set_level(logging.INFO)
    cfg = config_from_record(record, "x.pth", ["SOLVER.EPOCHS", "3"])
    assert (cfg.SOLVER.LR, cfg.SOLVER.EPOCHS, cfg.IMPORTS) == (0.07, 3, [])
    assert caplog.messages == ["x.pth was trained with modules that --import can import: my_blocks"]
