"""The best checkpoint by AP, and early stopping, which a resumed run repeats exactly."""

import math

import pytest
import torch

from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.training import detector_training
from fbnetv3.detection.training.best_detector import BestEvaluation, selection_precision
from fbnetv3.detection.training.detector_training import train_detector
from fbnetv3.errors import UsageError

STEPS = ["SOLVER.MAX_ITER", "8", "TEST.EVAL_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "2"]
STEPS += ["SOLVER.CHECKPOINTS_TO_KEEP", "9"]
# AP after each evaluation: the best is that of step 3, and step 6 is the third without gain
CURVE = [1.0, 2.0, 5.0, 5.0, 4.0, 3.0, 9.0, 9.0]


@pytest.fixture
def run(digits_config, tmp_path, monkeypatch):
    """Train with a given curve of AP by `run(KEY, VALUE, ..., resume=False)`; return the evaluated steps."""

    def train(*overrides, resume=False, curve=CURVE):
        evaluated = []

        def evaluate(cfg, model, names, group, folder=None, classes=()):
            step = states[0].optimizer.state[next(model_parameters())]["step"]
            evaluated.append(int(step))
            return {"custom_test": {"bbox": {"AP": curve[int(step) - 1], "AP50": 50.0}}}

        states = []
        original = detector_training.DetectorState

        def remember(*arguments):
            states.append(original(*arguments))
            return states[0]

        def model_parameters():
            return (p for group in states[0].optimizer.param_groups for p in group["params"])

        monkeypatch.setattr(detector_training, "DetectorState", remember)
        monkeypatch.setattr(detector_training, "evaluate_datasets", evaluate)
        cfg = load_detection_config(
            digits_config, [*STEPS, *overrides, "OUTPUT_DIR", str(tmp_path / "run")]
        )
        train_detector(cfg, resume=resume)
        return evaluated

    return train


def load(folder, name):
    return torch.load(folder / "run" / name, weights_only=True)


def test_the_best_checkpoint_is_the_average_of_the_best_step(run, tmp_path):
    run()
    best = load(tmp_path, "model_best.pth")
    assert best["iteration"] + 1 == 7 and best["metrics"] == {"bbox/AP": 9.0, "bbox/AP50": 50.0}


def test_the_final_weights_have_the_metrics_of_their_own_evaluation(run, tmp_path):
    run(curve=[1, 2, 1, 9, 1, 1, 6, 7])
    final = load(tmp_path, "model_final.pth")
    assert final["iteration"] + 1 == 8 and final["metrics"]["bbox/AP"] == 7


def test_best_weights_are_those_of_the_checkpoint_at_that_step(run, tmp_path):
    run(curve=[1, 2, 1, 9, 1, 1, 1, 1])
    best, checkpoint = load(tmp_path, "model_best.pth"), load(tmp_path, "checkpoints/step_00000004.pth")
    for key, value in checkpoint["ema_state"].items():
        assert torch.equal(best["model"][key], value)
        assert torch.equal(best["raw_model"][key], checkpoint["model"][key])


def test_a_run_stops_after_evaluations_without_gain(run, tmp_path, caplog):
    caplog.set_level("INFO")
    # The last evaluation, with the detections, repeats that of the last step
    assert run("SOLVER.PATIENCE", "3") == [1, 2, 3, 4, 5, 6, 6]
    assert (
        "stopped after step 6: no gain in AP in 3 evaluations; the best weights are those of step 3 (5.00), in "
        "model_best.pth" in caplog.messages
    )
    assert load(tmp_path, "model_best.pth")["iteration"] + 1 == 3
    assert load(tmp_path, "model_final.pth")["iteration"] + 1 == 6


@pytest.mark.parametrize("newest", [2, 4])
def test_a_resumed_run_stops_at_the_same_step(run, tmp_path, newest):
    """A checkpoint precedes the evaluation at its step, which the resumed run makes up for."""
    run("SOLVER.PATIENCE", "3")
    expected = [load(tmp_path, name) for name in ("model_final.pth", "model_best.pth")]
    for step in range(newest + 1, 9):
        (tmp_path / f"run/checkpoints/step_{step:08d}.pth").unlink(missing_ok=True)
    assert run("SOLVER.PATIENCE", "3", resume=True) == [*range(newest, 7), 6]
    for before, name in zip(expected, ("model_final.pth", "model_best.pth"), strict=True):
        after = load(tmp_path, name)
        assert after["iteration"] == before["iteration"]
        assert all(torch.equal(value, after["model"][key]) for key, value in before["model"].items())


def test_a_stopped_run_stays_stopped_unless_the_patience_is_raised(run, tmp_path):
    run("SOLVER.PATIENCE", "3")
    assert run("SOLVER.PATIENCE", "3", resume=True) == [6]
    assert run("SOLVER.PATIENCE", "4", resume=True) == [7, 8]
    assert load(tmp_path, "model_best.pth")["iteration"] + 1 == 7


def test_nan_is_never_the_best():
    best = BestEvaluation()
    assert not best.add(1, math.nan, {})
    assert best.add(2, 0.0, {}) and not best.add(3, math.nan, {}) and not best.add(4, 0.0, {})
    assert (best.step, best.evaluations_since) == (2, 2)


def test_weights_are_compared_by_boxes_in_the_first_dataset():
    tasks = {"segm": {"AP": 9.0}, "bbox": {"AP": 3.0, "AP50": 5.0}}
    assert selection_precision({"a": tasks, "b": {"bbox": {"AP": 7.0}}}) == 3.0
    assert selection_precision({"a": {"box_proposals": {"AR@100": 4.0}}}) == 4.0
    assert math.isnan(selection_precision({}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.PATIENCE", "-1"], "SOLVER.PATIENCE -1 must be at least 0"),
        (
            ["SOLVER.PATIENCE", "2"],
            "SOLVER.PATIENCE 2 needs evaluations during training: set TEST.EVAL_PERIOD",
        ),
    ],
)
def test_wrong_patience(digits_config, overrides, message):
    with pytest.raises(UsageError, match=message):
        load_detection_config(digits_config, overrides)


def test_checkpoints_of_earlier_versions_can_be_resumed(run, tmp_path):
    """They record neither evaluations nor the detector, and lack keys that are new in the config."""
    run()
    expected = load(tmp_path, "checkpoints/step_00000008.pth")
    for step in (6, 8):
        (tmp_path / f"run/checkpoints/step_{step:08d}.pth").unlink()
    file = tmp_path / "run/checkpoints/step_00000004.pth"
    state = torch.load(file, weights_only=True)
    del state["best_evaluation"], state["metadata"]["config"]["SOLVER.AMP.DTYPE"]
    state["metadata"] = {key: state["metadata"][key] for key in ("config", "seed")}
    torch.save(state, file)
    run(resume=True)
    resumed = load(tmp_path, "checkpoints/step_00000008.pth")
    assert all(torch.equal(value, resumed["model"][key]) for key, value in expected["model"].items())
