"""Training runs as trials of a search: learning curves, interruptions, keys that the search sets."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fbnetv3.arch import ArchDef, Row, Stage, configs_folder
from fbnetv3.arch.block_specs import ACTIVATIONS
from fbnetv3.config.recipe import Recipe
from fbnetv3.data.datasets import DATASETS
from fbnetv3.errors import DataError, UsageError
from fbnetv3.nars.evaluators.training_evaluator import TrainingEvaluator
from fbnetv3.training.tracking.trackers import TRACKERS

CONFIG = str(configs_folder() / "digits" / "fbnetv3_digits.yaml")
QUICK = {"SOLVER.WARMUP_EPOCHS": 0, "SOLVER.BATCH_SIZE": 256, "DATA.WORKERS": 0}

TINY = ArchDef(
    "tiny", (Stage((Row("conv", 8, kernel=3, stride=2), Row("mbpool", 16, expansion=2))),), 16, 16
)


def candidate(folder, **changes):
    folder.mkdir(exist_ok=True)
    values = {
        "arch": TINY,
        "recipe": None,
        "seed": 0,
        "full_epochs": 3,
        "folder": folder,
    }
    return SimpleNamespace(**values | changes)


def test_a_shorter_trial_is_the_beginning_of_a_full_one(tmp_path):
    evaluate = TrainingEvaluator(CONFIG, QUICK)
    full = evaluate(candidate(tmp_path / "full"), 3)
    short = evaluate(candidate(tmp_path / "short"), 2)
    assert len(full) == 3
    assert short == full[:2]
    (tmp_path / "full" / "checkpoints").mkdir()  # as if killed after the last epoch
    assert evaluate(candidate(tmp_path / "full"), 3) == full
    assert not (tmp_path / "full" / "checkpoints").exists()
    assert not (tmp_path / "full" / "tensorboard").exists()
    # The search has a report of its own on its trials
    assert not (tmp_path / "full" / "evaluation").exists()
    assert not (tmp_path / "results.csv").exists()


def test_trials_open_each_dataset_once(tmp_path, monkeypatch):
    """Reading the names of all images of a large dataset takes longer than the first steps of a trial."""
    opened = []
    build = DATASETS.get("digits")
    monkeypatch.setattr(DATASETS, "get", lambda name: lambda *split: opened.append(split) or build(*split))
    evaluate = TrainingEvaluator(CONFIG, QUICK)
    for number in range(2):
        evaluate(candidate(tmp_path / str(number)), 1)
    assert opened == [("", "train"), ("", "val")]
    # Another search may read changed files
    TrainingEvaluator(CONFIG, QUICK)(candidate(tmp_path / "other"), 1)
    assert len(opened) == 4


@pytest.mark.parametrize("trackers", ["[tensorboard]", "[tensorboard, recorder]"])
def test_trials_write_no_tensorboard_files(tmp_path, trackers):
    """They would be deleted at the end; other trackers of the config are used."""
    values = []

    class Recorder:
        def __init__(self, **_):
            pass

        def log(self, entry, step):
            values.append(entry)

        def close(self):
            pass

    TRACKERS.register(Recorder, name="recorder")
    TrainingEvaluator(CONFIG, {**QUICK, "LOG.TRACKERS": trackers})(candidate(tmp_path / "trial"), 1)
    assert not (tmp_path / "trial" / "tensorboard").exists()
    assert bool(values) == ("recorder" in trackers)


@pytest.mark.parametrize(
    ("overrides", "trial_device"), [({}, "auto"), ({"DEVICE": "cpu"}, "cpu"), ({"DEVICE": "cuda"}, "cuda")]
)
def test_executors_assign_gpus_according_to_the_device_of_the_config(overrides, trial_device):
    assert TrainingEvaluator(CONFIG, {**QUICK, **overrides}).trial_device == trial_device


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def test_a_paused_trial_continues_from_its_checkpoint(tmp_path):
    """Its curve is bit-equal to that of an uninterrupted trial, and no epoch is trained twice."""
    evaluate = TrainingEvaluator(CONFIG, QUICK)
    assert evaluate.continues
    full = evaluate(candidate(tmp_path / "full"), 3)
    trial = tmp_path / "paused"
    for epochs in (1, 2):
        assert evaluate(candidate(trial), epochs) == full[:epochs]
        assert len(checkpoints(trial)) == 1
    steps = [entry["step"] for entry in map(json.loads, (trial / "metrics.jsonl").open())]
    assert evaluate(candidate(trial), 3) == full
    continued = [entry["step"] for entry in map(json.loads, (trial / "metrics.jsonl").open())]
    assert continued[: len(steps)] == steps
    assert "(2 epochs)" in (trial / "log.txt").read_text()
    assert not checkpoints(trial)


def test_checkpoints_of_paused_trials_are_deleted_at_the_end(tmp_path):
    evaluate = TrainingEvaluator(CONFIG, QUICK)
    paused = evaluate(candidate(tmp_path / "paused"), 1)
    evaluate.clean_up([tmp_path / "paused", tmp_path / "never started"])
    assert not checkpoints(tmp_path / "paused")
    # A search with a larger budget may still continue it, from the start
    assert evaluate(candidate(tmp_path / "paused"), 2)[:1] == paused


def test_only_worker_processes_keep_freed_memory(tmp_path, monkeypatch):
    calls = []
    module = "fbnetv3.nars.evaluators.training_evaluator"
    monkeypatch.setattr(f"{module}.keep_freed_memory", lambda: calls.append(1))
    evaluate = TrainingEvaluator(CONFIG, QUICK)
    evaluate(candidate(tmp_path / "trial"), 1)
    assert not calls
    evaluate.prepare_worker()
    assert calls


def test_a_killed_trial_resumes(tmp_path, monkeypatch):
    evaluate = TrainingEvaluator(CONFIG, QUICK)
    full = evaluate(candidate(tmp_path / "full"), 3)

    class Killed(BaseException):
        pass

    def dies(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("fbnetv3.training.run_state.metrics.plot_curve", dies)
        patch.setattr("fbnetv3.training.training_hooks.plot_curve", dies)
        with pytest.raises(Killed):
            evaluate(candidate(tmp_path / "killed"), 3)
    assert evaluate(candidate(tmp_path / "killed"), 3) == full


def test_overrides_must_not_set_what_candidates_set(tmp_path):
    recipe = Recipe("sgd", 0.02)
    for key, value in (("SEED", 3), ("SOLVER.LR", 0.3), ("MODEL.ARCH", "fbnetv3_a")):
        with pytest.raises(UsageError, match=f"overrides: {key} is set by the search for each trial"):
            TrainingEvaluator(CONFIG, {**QUICK, key: value})(candidate(tmp_path / "x", recipe=recipe), 1)
        with pytest.raises(UsageError, match=f"overrides: {key} is set by the search for each trial"):
            TrainingEvaluator(CONFIG, {**QUICK, key: value}).check(candidate(tmp_path / "x", recipe=recipe))


def test_check_raises_what_every_trial_would_fail_with(tmp_path):
    TrainingEvaluator(CONFIG, QUICK).check(candidate(tmp_path / "x"))
    nowhere = {**QUICK, "DATA.NAME": "imagefolder", "DATA.ROOT": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match="nowhere"):
        TrainingEvaluator(CONFIG, nowhere).check(candidate(tmp_path / "x"))


def test_check_finds_networks_that_do_not_accept_the_images(tmp_path):
    """Before the first trial, in one line."""
    gray = {**QUICK, "MODEL.ARCH": "torchvision/resnet18", "INPUT.RESOLUTION": 32}
    recipe = candidate(tmp_path / "x", arch=None)
    with pytest.raises(UsageError, match=r"^torchvision/resnet18 needs RGB images, not MODEL.IN_CHANS 1$"):
        TrainingEvaluator(CONFIG, gray).check(recipe)
    color = {"MODEL.IN_CHANS": 3, "INPUT.MEAN": [0.5] * 3, "INPUT.STD": [0.5] * 3}
    TrainingEvaluator(CONFIG, gray | color).check(recipe)


class TwiceTheChannels(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1)


def test_check_finds_blocks_that_do_not_fit_together(tmp_path):
    ACTIVATIONS.register(TwiceTheChannels, name="twice")
    try:
        rows = (Row("conv", 8, kernel=3, stride=2, act="twice"), Row("mbpool", 16, expansion=2))
        own = candidate(tmp_path / "x", arch=ArchDef("mine", (Stage(rows),), 32, 32))
        error = "^mine does not accept images of 1 channels and 32 pixels .RuntimeError: .* 16 channels"
        with pytest.raises(UsageError, match=error):
            TrainingEvaluator(CONFIG, QUICK).check(own)
    finally:
        ACTIVATIONS.remove("twice")


def test_check_does_not_change_the_random_state(tmp_path):
    state = torch.get_rng_state()
    TrainingEvaluator(CONFIG, QUICK).check(candidate(tmp_path / "x"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("resolution", "channels"), [(288, 8), (128, 512)])
def test_check_does_not_run_large_networks(tmp_path, resolution, channels):
    ACTIVATIONS.register(TwiceTheChannels, name="twice")
    try:
        stem = Row("conv", channels, kernel=3, stride=1, act="twice")
        rows = (stem, Row("conv", channels, kernel=5), Row("mbpool", 16, expansion=2))
        own = candidate(tmp_path / "x", arch=ArchDef("mine", (Stage(rows),), resolution, resolution))
        TrainingEvaluator(CONFIG, QUICK).check(own)  # no error, as its blocks are not run
    finally:
        ACTIVATIONS.remove("twice")
