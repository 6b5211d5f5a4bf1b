"""Trainings as trials of a search: curves, interruptions, settings that the search decides."""

from types import SimpleNamespace

import pytest

from fbnetv3.arch import configs_folder, get_arch
from fbnetv3.config.recipe import Recipe
from fbnetv3.errors import DataError, UsageError
from fbnetv3.nars.evaluators.training_evaluator import TrainingEvaluator

CONFIG = str(configs_folder() / "digits" / "fbnetv3_digits.yaml")
QUICK = {"SOLVER.WARMUP_EPOCHS": 0, "SOLVER.BATCH_SIZE": 256, "DATA.WORKERS": 0}


def candidate(folder, **changes):
    folder.mkdir(exist_ok=True)
    values = {"arch": get_arch("fbnetv3_digits"), "recipe": None, "seed": 0, "full_epochs": 3, "folder": folder}
    return SimpleNamespace(**values | changes)


def test_a_shorter_trial_is_the_beginning_of_a_whole_one(tmp_path):
    evaluate = TrainingEvaluator(CONFIG, QUICK)
    whole = evaluate(candidate(tmp_path / "whole"), 3)
    short = evaluate(candidate(tmp_path / "short"), 2)
    assert len(whole) == 3
    assert short == whole[:2]
    for left in ("checkpoints", "tensorboard"):  # killed at its very end, before that was written down
        (tmp_path / "short" / left).mkdir()
    assert evaluate(candidate(tmp_path / "short"), 2) == short
    assert not (tmp_path / "short" / "checkpoints").exists()


def test_a_trial_that_was_killed_goes_on(tmp_path, monkeypatch):
    evaluate = TrainingEvaluator(CONFIG, QUICK)
    whole = evaluate(candidate(tmp_path / "whole"), 3)

    class Killed(BaseException):
        pass

    def dies(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("fbnetv3.training.run_state.metrics.plot_curve", dies)
        patch.setattr("fbnetv3.training.training_hooks.plot_curve", dies)
        with pytest.raises(Killed):
            evaluate(candidate(tmp_path / "killed"), 3)
    assert evaluate(candidate(tmp_path / "killed"), 3) == whole


def test_overrides_and_candidates_do_not_meet(tmp_path):
    with pytest.raises(UsageError, match="overrides: SEED is set for each trial by the search"):
        TrainingEvaluator(CONFIG, {"SEED": 3})
    recipe = Recipe("sgd", 0.02)
    for key, value in (("SOLVER.LR", 0.3), ("MODEL.ARCH", "fbnetv3_a")):
        with pytest.raises(UsageError, match=f"overrides: {key} is what the candidates decide"):
            TrainingEvaluator(CONFIG, {**QUICK, key: value})(candidate(tmp_path / "x", recipe=recipe), 1)
        with pytest.raises(UsageError, match=f"overrides: {key} is what the candidates decide"):
            TrainingEvaluator(CONFIG, {**QUICK, key: value}).check(candidate(tmp_path / "x", recipe=recipe))


def test_what_no_trial_can_do_is_found_before_the_first(tmp_path):
    TrainingEvaluator(CONFIG, QUICK).check(candidate(tmp_path / "x"))
    nowhere = {**QUICK, "DATA.NAME": "imagefolder", "DATA.ROOT": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match="nowhere"):
        TrainingEvaluator(CONFIG, nowhere).check(candidate(tmp_path / "x"))
