"""Training runs as trials of a search: learning curves, interruptions, keys that the search sets."""

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
    values = {
        "arch": get_arch("fbnetv3_digits"),
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
    for name in ("checkpoints", "tensorboard"):  # as if killed after the last epoch
        (tmp_path / "short" / name).mkdir()
    assert evaluate(candidate(tmp_path / "short"), 2) == short
    assert not (tmp_path / "short" / "checkpoints").exists()


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
