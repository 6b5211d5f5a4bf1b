"""tools/train_net.py for detectors: from a folder of one's own to a detector, with every kind of interruption."""

import json
import os
import shutil
import signal

import pytest
import torch
from detectron2.modeling import build_model

from fbnetv3.detection import load_detector
from fbnetv3.detection.data import detection_datasets
from fbnetv3.detection.detection_config_loading import load_config
from fbnetv3.detection.training import detection_evaluation
from fbnetv3.detection.training.detector_training import build_optimizer, run_evaluation, run_training
from fbnetv3.training.processes.distributed import ALONE

# Enough to find something on the images that it learns.
LONGER = ["SOLVER.IMS_PER_BATCH", "4", "INPUT.MIN_SIZE_TRAIN", "(80,)", "INPUT.RANDOM_FLIP", "none"]
LONGER += ["SOLVER.MAX_ITER", "50", "SOLVER.WARMUP_ITERS", "5", "SOLVER.BASE_LR", "0.005", "MODEL_EMA.DECAY", "0.8"]
LONGER += ["SOLVER.CHECKPOINT_PERIOD", "1000", "INPUT.MIN_SIZE_TEST", "80", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
LONGER += ["DATASETS.TEST", "('own_train',)"]
NO_TEST = ["DATASETS.OWN.TEST_JSON", "", "DATASETS.OWN.TEST_IMAGES", ""]


@pytest.fixture(scope="module")
def whole(digits_config, tmp_path_factory):
    """The folder of a run of four steps, which nothing has broken."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_training(load_config(digits_config, ["OUTPUT_DIR", str(out)]))
    return out


@pytest.fixture
def copied(whole, tmp_path):
    """That folder once more, to do something to."""
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture(scope="module")
def learnt(digits_config, tmp_path_factory):
    """The config of a training that learns something, and what it came to."""
    out = tmp_path_factory.mktemp("learnt") / "run"
    cfg = load_config(digits_config, [*LONGER, "OUTPUT_DIR", str(out)])
    return cfg, run_training(cfg)


@pytest.fixture
def train(tool, digits_config, tmp_path):
    """`train(KEY, VALUE, ...)` runs the tool into the folder `run`."""
    return lambda *arguments: tool("train_net", "--config", digits_config, "OUTPUT_DIR", tmp_path / "run", *arguments)


def checkpoint(run, step):
    return torch.load(run / "checkpoints" / f"step_{step:08d}.pth", weights_only=True)


def assert_equal(a, b, where=""):
    """Two checkpoints, to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_runs_equal(a, b):
    assert_equal(checkpoint(a, 4), checkpoint(b, 4))
    assert_equal(*(torch.load(run / "model_final.pth", weights_only=True) for run in (a, b)))


def test_a_folder_of_ones_own_by_config_alone(train, tool, tmp_path):
    ran = train()
    out = tmp_path / "run"
    assert (ran.code, ran.err) == (0, "")
    assert "on own_train: 8 images, 2 a step, 4 steps" in ran.out
    assert "step 4/4: loss" in ran.out
    assert [line.split()[0] for line in ran.out.splitlines() if " bbox " in line] == ["own_test"]
    for file in ("model_final.pth", "metrics.jsonl", "curve.png", "detections.png", "log.txt", "tensorboard"):
        assert str(out / file) in ran.out and (out / file).exists()
    assert "step 4/4: loss" in (out / "log.txt").read_text()
    assert (out / "inference" / "own_test" / "coco_instances_results.json").exists()
    assert sorted(os.listdir(out / "checkpoints")) == ["last_checkpoint", "step_00000002.pth", "step_00000004.pth"]
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"total_loss", "loss_cls", "lr"} <= entries[0].keys()
    assert (entries[-1]["iteration"], "bbox/AP50" in entries[-1]) == (4, True)
    again = tool("train_net", "--config", out / "config.yaml", "--eval-only")
    assert (again.code, again.err) == (0, "")
    assert again.out.splitlines()[-1] in ran.out.splitlines()


def test_evaluation_finds_what_training_found(learnt):
    cfg, result = learnt
    assert result.results["own_train"]["bbox"]["AP50"] > 0
    assert run_evaluation(cfg)["own_train"]["bbox"] == pytest.approx(result.results["own_train"]["bbox"], nan_ok=True)


def test_the_average_is_what_is_evaluated(learnt):
    cfg, result = learnt
    saved = torch.load(result.files.weights, weights_only=True)
    model = build_model(cfg)
    model.load_state_dict(saved["model"])
    raw = detection_evaluation.evaluate_detector(cfg, model, ["own_train"], ALONE)["own_train"]["bbox"]
    load_detector(model, result.files.weights)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved["ema_state"][key])
    assert raw["AP"] != result.results["own_train"]["bbox"]["AP"]


def test_the_average_is_that_of_every_step(train, tmp_path):
    train(*NO_TEST, "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINTS", "9", "MODEL_EMA.DECAY", "0.2")
    states = [checkpoint(tmp_path / "run", step) for step in (1, 2, 3, 4)]
    for key in ("backbone.stages.1.0.project.1.running_mean", "proposal_generator.rpn_head.anchor_deltas.weight"):
        assert states[0]["model"][key].any()
        average = states[0]["model"][key]
        for n, state in enumerate(states[1:], 1):
            keep = min(0.2, (1 + n) / (10 + n))
            average = keep * average + (1 - keep) * state["model"][key]
            torch.testing.assert_close(state["ema_state"][key], average)
        assert not torch.equal(states[-1]["ema_state"][key], states[-1]["model"][key])


def test_resuming_gives_what_an_unbroken_run_gives(train, whole, copied):
    """Weights, average, optimiser and schedule, to the last bit: the images, their sizes and flips among it."""
    newest = copied / "checkpoints/step_00000004.pth"
    newest.write_bytes(newest.read_bytes()[:1000])
    ran = train("--resume")
    assert ran.code == 0
    assert "step_00000004.pth: is damaged" in ran.out and "trying the one before" in ran.out
    assert "going on after 2 steps" in ran.out
    assert_runs_equal(whole, copied)
    entries = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert [e["iteration"] for e in entries] == [3, 4]


def test_a_seed_that_nobody_has_chosen_is_kept(train, tmp_path):
    newest = tmp_path / "run/checkpoints/step_00000004.pth"
    train(*NO_TEST, "SEED", "-1")
    before = checkpoint(tmp_path / "run", 4)
    newest.unlink()
    assert "going on after 2 steps" in train(*NO_TEST, "SEED", "-1", "--resume").out
    assert_equal(before, checkpoint(tmp_path / "run", 4))


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_the_step_and_the_run_can_go_on(train, whole, tmp_path, monkeypatch, number, code, word):
    read, calls = detection_datasets.SeededImages.__getitem__, []

    def interrupted(self, key):
        calls.append(key)
        if len(calls) == 5:  # the third step's first image
            os.kill(os.getpid(), number)
        return read(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(detection_datasets.SeededImages, "__getitem__", interrupted)
        ran = train()
    assert (ran.code, ran.err) == (code, f"{word}; add --resume to go on from the last checkpoint\n")
    assert not (tmp_path / "run/model_final.pth").exists()
    assert checkpoint(tmp_path / "run", 3)["iteration"] == 2
    assert train("--resume").code == 0
    assert_runs_equal(whole, tmp_path / "run")


def test_images_read_by_another_process_are_the_same(train, whole, tmp_path):
    assert train("DATALOADER.NUM_WORKERS", "1").code == 0
    assert_runs_equal(whole, tmp_path / "run")


def test_a_signal_while_it_evaluates(train, tmp_path, monkeypatch):
    agree, asked = detection_evaluation.agree_on_interrupt, []

    def terminated(world):
        asked.append(world)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return agree(world)

    monkeypatch.setattr(detection_evaluation, "agree_on_interrupt", terminated)
    assert train("TEST.EVAL_PERIOD", "3").code == 143
    assert len(asked) == 2
    assert checkpoint(tmp_path / "run", 3)["iteration"] == 2


def test_a_complete_run_is_evaluated_again(train, copied):
    ran = train("--resume")
    assert (ran.code, ran.err) == (0, "")
    assert "step 4/4" not in ran.out and " bbox " in ran.out


def test_a_run_is_not_written_over(train, copied):
    before = (copied / "model_final.pth").read_bytes()
    for arguments, said in (
        ([], "holds a run already; add --resume"),
        (["--resume", "SOLVER.BASE_LR", "0.1"], "is of a run with another SOLVER.BASE_LR 0.003, not 0.1"),
        (["--resume", "SOLVER.MAX_ITER", "3"], "is 4 steps old already; SOLVER.MAX_ITER 3 is less"),
    ):
        ran = train(*arguments)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert said in ran.err
    assert (copied / "model_final.pth").read_bytes() == before


def test_a_loss_that_is_not_finite_ends_the_run(train, tmp_path):
    ran = train("SOLVER.BASE_LR", "1e12", "SOLVER.OPTIMIZER", "SGD", "SOLVER.WARMUP_ITERS", "0")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert ran.err.startswith("error: the loss ") and " at step " in ran.err
    assert "train/0000" in ran.err and "lower SOLVER.BASE_LR" in ran.err
    assert torch.load(tmp_path / "run/diverged.pth", weights_only=True)["names"]
    assert not (tmp_path / "run/model_final.pth").exists()


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_optimizers_take_detectron2s_keys(digits_config, name):
    keys = ["SOLVER.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", "0.3", "SOLVER.WEIGHT_DECAY_NORM", "0.1"]
    cfg = load_config(digits_config, [*keys, "SOLVER.BASE_LR", "0.2"])
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer).__name__ == name
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    assert decays[id(model.backbone.stages[0][0][1].weight)] == 0.1
    assert decays[id(model.backbone.stages[0][0][0].weight)] == 0.3
    assert {group["lr"] for group in optimizer.param_groups} == {0.2}
