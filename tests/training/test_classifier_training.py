"""Training runs started from Python, as a search starts them."""

import logging

import pytest
import torch
from torch import distributed

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.errors import DeviceMemoryError, UserError
from fbnetv3.training import Trainer, train
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.run_state.metrics import read_metrics

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"


def make_config(folder, *overrides):
    short = [
        "SOLVER.EPOCHS",
        "3",
        "SOLVER.WARMUP_EPOCHS",
        "0",
        "SOLVER.BATCH_SIZE",
        "256",
        "EVAL.BATCH_SIZE",
        "360",
    ]
    return load_config(DIGITS, [*short, "OUTPUT_DIR", str(folder), *overrides])


def test_a_learning_curve(tmp_path, capsys, caplog):
    results = []
    with caplog.at_level(logging.INFO):
        curve = train(make_config(tmp_path), [results.append])
    assert [result["epoch"] for result in curve] == [1, 2, 3]
    assert all({"top1", "top5", "loss", "images"} <= result.keys() for result in curve)
    assert results == curve
    assert capsys.readouterr() == ("", "") and not caplog.records
    assert "epoch 3/3" in (tmp_path / "log.txt").read_text()


def test_two_trainings_in_one_process_do_not_affect_each_other(tmp_path):
    log = logging.getLogger("fbnetv3")
    handlers, level = list(log.handlers), log.level
    torch.manual_seed(3)
    first = train(make_config(tmp_path / "first", "SOLVER.EPOCHS", "1"))
    random_numbers = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(random_numbers, torch.rand(3))
    train(make_config(tmp_path / "other", "SOLVER.EPOCHS", "1", "SEED", "7"))
    assert train(make_config(tmp_path / "again", "SOLVER.EPOCHS", "1")) == first
    assert (log.handlers, log.level, log.propagate) == (handlers, level, True)


def test_a_run_that_a_callback_stopped_can_be_resumed(tmp_path):
    uninterrupted = train(make_config(tmp_path / "uninterrupted"))
    first_part = train(make_config(tmp_path / "stopped"), [lambda result: result["epoch"] < 2])
    assert [result["epoch"] for result in first_part] == [1, 2]
    assert not (tmp_path / "stopped" / "model_final.pth").exists()
    assert train(make_config(tmp_path / "stopped"), resume=True) == uninterrupted
    metrics = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("stopped", "uninterrupted")]
    assert metrics[0] == metrics[1]


def test_resuming_a_complete_run_returns_its_curve(tmp_path):
    curve = train(make_config(tmp_path, "SOLVER.EPOCHS", "1"))
    assert train(make_config(tmp_path, "SOLVER.EPOCHS", "1"), resume=True) == curve


def test_errors_while_resuming_that_are_not_the_checkpoints(tmp_path, monkeypatch):
    """The user is not told to delete it."""
    train(make_config(tmp_path, "SOLVER.EPOCHS", "1"))

    def run_out_of_memory(trainer, state):
        raise torch.cuda.OutOfMemoryError

    def lose_process(group, value):
        if isinstance(value, list):
            raise distributed.DistError
        return value

    with monkeypatch.context() as patch, pytest.raises(DeviceMemoryError):
        patch.setattr(Trainer, "load_state_dict", run_out_of_memory)
        train(make_config(tmp_path), resume=True)
    with monkeypatch.context() as patch, pytest.raises(distributed.DistError):
        patch.setattr(ProcessGroup, "broadcast", lose_process)
        train(make_config(tmp_path), resume=True)


@pytest.mark.parametrize(("schedule", "changes"), [("cosine", True), ("exponential", False)])
def test_a_longer_run_warns_if_its_learning_rate_changes(tmp_path, caplog, schedule, changes):
    train(make_config(tmp_path, "SOLVER.EPOCHS", "1", "SOLVER.SCHEDULE", schedule))
    caplog.clear()
    train(make_config(tmp_path, "SOLVER.EPOCHS", "2", "SOLVER.SCHEDULE", schedule), resume=True)
    assert ("the learning rate changes from" in caplog.text) == changes


def test_an_error_in_a_callback_is_raised_and_random_state_restored(tmp_path):
    def fail(result):
        raise ZeroDivisionError

    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        train(make_config(tmp_path, "SOLVER.EPOCHS", "1"), [fail])
    assert torch.equal(state, torch.get_rng_state())


def test_a_name_that_is_too_long_for_a_file(tmp_path):
    with pytest.raises(UserError, match="unknown architecture"):
        train(make_config(tmp_path, "MODEL.ARCH", "x" * 600))
    config = tmp_path / "config.yaml"
    config.write_text(f"_BASE_: {DIGITS}\nMODEL: {{ARCH: {'x' * 600}}}\nOUTPUT_DIR: {tmp_path / 'run'}\n")
    with pytest.raises(UserError, match="unknown architecture"):
        train(load_config(config))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["DATA.NAME", "digit"], "DATA.NAME: unknown dataset 'digit': did you mean digits?"),
        (["SOLVER.SCHEDULE", "cosin"], "SOLVER.SCHEDULE.*cosin"),
        (["INPUT.CROP", "pad"], "INPUT.CROP.*pad"),
        (["INPUT.AUTO_AUGMENT", "randaug"], "INPUT.AUTO_AUGMENT.*randaug"),
    ],
)
def test_unknown_names_are_refused_before_the_run_starts(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        train(make_config(tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()
