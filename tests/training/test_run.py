"""Runs called from Python, as a search calls them."""

import logging

import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.errors import UserError
from fbnetv3.training import train
from fbnetv3.training.run_state.metrics import read_metrics

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"


def config(folder, *overrides):
    short = ["SOLVER.EPOCHS", "3", "SOLVER.WARMUP_EPOCHS", "0", "SOLVER.BATCH_SIZE", "256", "EVAL.BATCH_SIZE", "360"]
    return load_config(DIGITS, [*short, "OUTPUT_DIR", str(folder), *overrides])


def test_a_learning_curve(tmp_path, capsys, caplog):
    seen = []
    with caplog.at_level(logging.INFO):
        curve = train(config(tmp_path), [seen.append])
    assert [result["epoch"] for result in curve] == [1, 2, 3]
    assert all({"top1", "top5", "loss", "images"} <= result.keys() for result in curve)
    assert seen == curve
    assert capsys.readouterr() == ("", "") and not caplog.records
    assert "epoch 3/3" in (tmp_path / "log.txt").read_text()


def test_two_trainings_in_one_process_do_not_touch_each_other(tmp_path):
    handlers, level = list(logging.getLogger("fbnetv3").handlers), logging.getLogger("fbnetv3").level
    torch.manual_seed(3)
    first = train(config(tmp_path / "first", "SOLVER.EPOCHS", "1"))
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(3))
    train(config(tmp_path / "other", "SOLVER.EPOCHS", "1", "SEED", "7"))
    assert train(config(tmp_path / "again", "SOLVER.EPOCHS", "1")) == first
    log = logging.getLogger("fbnetv3")
    assert (log.handlers, log.level, log.propagate) == (handlers, level, True)


def test_a_callback_stops_a_run_and_it_can_go_on(tmp_path):
    whole = train(config(tmp_path / "whole"))
    first = train(config(tmp_path / "cut"), [lambda result: result["epoch"] < 2])
    assert [result["epoch"] for result in first] == [1, 2]
    assert not (tmp_path / "cut" / "model_final.pth").exists()
    assert train(config(tmp_path / "cut"), resume=True) == whole
    assert read_metrics(tmp_path / "cut" / "metrics.jsonl") == read_metrics(tmp_path / "whole" / "metrics.jsonl")


def test_a_finished_run_gives_its_curve_again(tmp_path):
    curve = train(config(tmp_path, "SOLVER.EPOCHS", "1"))
    assert train(config(tmp_path, "SOLVER.EPOCHS", "1"), resume=True) == curve


def test_an_error_in_a_callback_comes_through_and_leaves_nothing_behind(tmp_path):
    def broken(result):
        raise ZeroDivisionError

    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        train(config(tmp_path, "SOLVER.EPOCHS", "1"), [broken])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["INPUT.MIXUP", "1e-120"], "neither 0, for none, nor at least 1e-6"),
        (["MODEL.ARCH", "x" * 600], "unknown architecture"),
    ],
)
def test_values_beside_what_makes_sense(overrides, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(config(tmp_path, *overrides))


def test_a_file_that_names_what_no_file_can_be_called(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"_BASE_: {DIGITS}\nMODEL: {{ARCH: {'x' * 600}}}\nOUTPUT_DIR: {tmp_path / 'out'}\n")
    with pytest.raises(UserError, match="unknown architecture"):
        train(load_config(file))
