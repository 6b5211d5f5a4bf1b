"""Experiment trackers get what the metrics file gets; their packages are stood in for by modules that record calls."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.errors import MissingPackageError, UserError
from fbnetv3.training import train
from fbnetv3.training.run_state.metrics import read_metrics
from fbnetv3.training.tracking.trackers import TRACKERS, RunTrackers

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
SHORT = ["SOLVER.WARMUP_EPOCHS", "0", "SOLVER.BATCH_SIZE", "256", "EVAL.REPORT", "off", "DATA.WORKERS", "0"]


def run(folder, trackers, epochs=1, resume=False, **arguments):
    overrides = ["OUTPUT_DIR", str(folder), "LOG.TRACKERS", str(trackers), "SOLVER.EPOCHS", str(epochs)]
    return train(load_config(DIGITS, [*SHORT, *overrides]), resume=resume, **arguments)


def logged_metrics(folder):
    """Return the entries of the metrics file as (step, values)."""
    return [
        (entry["step"], {key: value for key, value in entry.items() if key not in ("step", "epoch")})
        for entry in read_metrics(folder / "metrics.jsonl")
    ]


def make_module(monkeypatch, name, **functions):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch):
    calls = SimpleNamespace(starts=[], logged=[], finished=0)

    class Run:
        def log(self, values, step):
            calls.logged.append((step, values))

        def finish(self):
            calls.finished += 1

    def init(**arguments):
        calls.starts.append(arguments)
        return Run()

    make_module(monkeypatch, "wandb", init=init)
    return calls


@pytest.fixture
def mlflow(monkeypatch):
    calls = SimpleNamespace(starts=[], params=[], logged=[], finished=0)

    def start_run(run_id=None, run_name=None):
        calls.starts.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "a1b2"))

    def end_run():
        calls.finished += 1

    make_module(
        monkeypatch,
        "mlflow",
        start_run=start_run,
        end_run=end_run,
        log_params=calls.params.append,
        log_metrics=lambda values, step: calls.logged.append((step, values)),
    )
    return calls


def test_weights_and_biases(tmp_path, wandb):
    run(tmp_path / "my_run", ["wandb"])
    (start,) = wandb.starts
    assert (start["name"], start["dir"], start["resume"]) == ("my_run", str(tmp_path / "my_run"), "allow")
    assert start["config"]["SOLVER.BATCH_SIZE"] == 256
    assert wandb.logged == logged_metrics(tmp_path / "my_run")
    assert wandb.finished == 1
    assert not (tmp_path / "my_run" / "tensorboard").exists()


def test_mlflow(tmp_path, mlflow):
    run(tmp_path / "my_run", ["tensorboard", "mlflow"])
    assert mlflow.starts == [(None, "my_run")]
    assert mlflow.params[0]["MODEL.ARCH"] == "fbnetv3_digits"
    assert mlflow.logged == logged_metrics(tmp_path / "my_run")
    assert mlflow.finished == 1
    assert list((tmp_path / "my_run" / "tensorboard").iterdir())


def test_a_resumed_run_continues_its_record(tmp_path, wandb, mlflow):
    run(tmp_path / "run", ["wandb", "mlflow"], 2, callbacks=[lambda result: False])
    run(tmp_path / "run", ["wandb", "mlflow"], 2, resume=True)
    first, second = wandb.starts
    assert first["id"] == second["id"]
    assert mlflow.starts == [(None, "run"), ("a1b2", None)] and len(mlflow.params) == 1
    assert wandb.logged == mlflow.logged == logged_metrics(tmp_path / "run")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_installed(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=f"LOG.TRACKERS {name} needs .*: pip install {name}"):
        run(tmp_path / "run", [name])
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker(tmp_path):
    with pytest.raises(UserError, match=r"LOG.TRACKERS: unknown tracker 'wandbb': did you mean wandb\?"):
        run(tmp_path / "run", ["wandbb"])
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, caplog):
    """Neither at its start, nor later, nor at the end; the others go on."""

    class Failing:
        def __init__(self, *, folder, config, step):
            self.fails_at = config["fails_at"]
            if self.fails_at == "start":
                raise ConnectionError("no server")

        def log(self, values, step):
            if self.fails_at == "log":
                raise ConnectionError("server gone")

        def close(self):
            if self.fails_at == "close":
                raise ConnectionError("server closed")

    recorded = []

    class Recording(Failing):
        def log(self, values, step):
            recorded.append(step)

    TRACKERS.register(Failing, name="failing")
    TRACKERS.register(Recording, name="recording")
    try:
        for fails_at in ("start", "log", "close"):
            trackers = RunTrackers(["failing"], tmp_path, {"fails_at": fails_at}, 0)
            others = RunTrackers(["recording"], tmp_path, {"fails_at": ""}, 0)
            for step in (1, 2):
                trackers.log({"loss": 1.0}, step)
                others.log({"loss": 1.0}, step)
            trackers.close()
    finally:
        TRACKERS.remove("failing")
        TRACKERS.remove("recording")
    assert recorded == [1, 2] * 3
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "ConnectionError: no server",
        "ConnectionError: server gone",
        "ConnectionError: server closed",
    ]
