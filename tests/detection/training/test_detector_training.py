"""tools/train_net.py for detectors: training on a user's own images, and every kind of interruption."""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from fbnetv3.detection import load_detector
from fbnetv3.detection.data import detection_loaders
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.training import detector_evaluation, evaluation_tables
from fbnetv3.detection.training.augmented_figure import MAX_INPUTS
from fbnetv3.detection.training.detector_evaluation import evaluate_detector
from fbnetv3.detection.training.detector_setup import build_detector_optimizer
from fbnetv3.detection.training.detector_training import train_detector
from fbnetv3.model_zoo.pretrained import find_detector_weights
from fbnetv3.training.processes.distributed import SINGLE_PROCESS
from fbnetv3.training.run_state.fingerprint import DETECTOR_IGNORED_KEYS, config_fingerprint
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.tracking.results_table import collect_results
from fbnetv3.utils.nested_keys import flatten
from tests.detection.coco_files import dataset, save_dataset

# Long enough to detect something on the training images
LONGER = ["SOLVER.IMS_PER_BATCH", "4", "INPUT.MIN_SIZE_TRAIN", "(80,)", "INPUT.RANDOM_FLIP", "none"]
LONGER += [
    "SOLVER.MAX_ITER",
    "50",
    "SOLVER.WARMUP_ITERS",
    "5",
    "SOLVER.BASE_LR",
    "0.005",
    "MODEL_EMA.DECAY",
    "0.8",
]
LONGER += [
    "SOLVER.CHECKPOINT_PERIOD",
    "1000",
    "INPUT.MIN_SIZE_TEST",
    "80",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "0.0",
]
LONGER += ["DATASETS.TEST", "('custom_train',)"]
NO_TEST = ["DATASETS.CUSTOM.TEST_JSON", "", "DATASETS.CUSTOM.TEST_IMAGES", ""]


@pytest.fixture(scope="module")
def uninterrupted(digits_config, tmp_path_factory):
    """Return the folder of an uninterrupted run of four steps."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    train_detector(load_detection_config(digits_config, ["OUTPUT_DIR", str(out)]))
    return out


@pytest.fixture
def copied_run(uninterrupted, tmp_path):
    """Return a copy of that folder."""
    return shutil.copytree(uninterrupted, tmp_path / "run")


@pytest.fixture(scope="module")
def longer_run(digits_config, tmp_path_factory):
    """Return the config and result of a run that learns something."""
    out = tmp_path_factory.mktemp("longer") / "run"
    cfg = load_detection_config(digits_config, [*LONGER, "OUTPUT_DIR", str(out)])
    return cfg, train_detector(cfg)


@pytest.fixture
def train(tool, digits_config, tmp_path):
    """Run the tool by `train(KEY, VALUE, ...)`, with output in the folder `run`."""
    return lambda *arguments: tool(
        "train_net", "--config", digits_config, "OUTPUT_DIR", tmp_path / "run", *arguments
    )


def checkpoint(run, step):
    return torch.load(run / "checkpoints" / f"step_{step:08d}.pth", weights_only=True)


def assert_equal(a, b, where=""):
    """Require that two checkpoints are equal bit for bit."""
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
    """Require equal checkpoints, except for the recorded configs, whose folders and workers may differ."""
    for name in ("checkpoints/step_00000004.pth", "model_final.pth", "model_best.pth"):
        checkpoints = [torch.load(run / name, weights_only=True) for run in (a, b)]
        for state in checkpoints:
            del state["metadata"]["detection_config"]
        assert_equal(*checkpoints)


def test_own_images_need_only_a_config(train, tool, tmp_path):
    ran = train()
    out = tmp_path / "run"
    assert (ran.code, ran.err) == (0, "")
    assert "on custom_train: 8 images, 2 per step, 4 steps" in ran.out
    assert "step 4/4: loss" in ran.out
    assert [line.split()[0] for line in ran.out.splitlines() if " bbox " in line] == ["custom_test"]
    for file in (
        "model_final.pth",
        "metrics.jsonl",
        "curve.png",
        "detections.png",
        "log.txt",
        "tensorboard",
    ):
        assert str(out / file) in ran.out and (out / file).exists()
    assert "step 4/4: loss" in (out / "log.txt").read_text()
    assert (out / "augmented_images.png").exists()
    assert (out / "inference" / "custom_test" / "coco_instances_results.json").exists()
    assert sorted(os.listdir(out / "checkpoints")) == [
        "last_checkpoint",
        "step_00000002.pth",
        "step_00000004.pth",
    ]
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"total_loss", "loss_cls", "lr"} <= entries[0].keys()
    assert (entries[-1]["iteration"], "bbox/AP50" in entries[-1]) == (4, True)
    (row,) = collect_results(tmp_path)
    assert (row["run"], row["arch"], row["ap50"]) == ("run", "fbnetv3_digits", entries[-1]["bbox/AP50"])
    assert (tmp_path / "results.csv").exists()
    again = tool("train_net", "--config", out / "config.yaml", "--eval-only")
    assert (again.code, again.err) == (0, "")
    assert again.out.splitlines()[-1] in ran.out.splitlines()


def test_evaluation_gives_the_results_of_the_training(longer_run):
    cfg, result = longer_run
    assert result.results["custom_train"]["bbox"]["AP50"] > 0
    assert evaluate_detector(cfg)["custom_train"]["bbox"] == pytest.approx(
        result.results["custom_train"]["bbox"], nan_ok=True
    )


def test_a_run_without_final_weights_is_evaluated_at_its_newest_checkpoint(copied_run):
    (copied_run / "model_final.pth").unlink()
    newest = copied_run / "checkpoints" / "step_00000004.pth"
    assert RunFolder(copied_run).trained_weights() == newest
    cfg = load_detection_config(copied_run / "config.yaml")
    assert find_detector_weights("digits.yaml", cfg, "") == str(newest)


@pytest.mark.parametrize("objects", [True, False])
def test_average_precision_of_a_detector_that_detects_nothing(digits_config, tmp_path, objects):
    data = dataset(classes=[str(digit) for digit in range(10)], annotations=None if objects else [])
    file, folder = save_dataset(tmp_path, data)
    custom = ["DATASETS.CUSTOM.TEST_JSON", str(file), "DATASETS.CUSTOM.TEST_IMAGES", str(folder)]
    overrides = [*custom, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0", "MODEL.MASK_ON", "True"]
    cfg = load_detection_config(digits_config, overrides)
    results = detector_evaluation.evaluate_datasets(cfg, build_model(cfg), ["custom_test"], SINGLE_PROCESS)
    # The objects have 24 x 16 pixels, are all of class "0", and have no masks
    with_objects = {"AP", "AP50", "AP75", "APs", "AP-0"} if objects else set()
    columns = ["AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AP-{digit}" for digit in range(10))]
    nothing = dict.fromkeys(columns, math.nan)
    bbox = {**nothing, **dict.fromkeys(with_objects, 0.0)}
    assert results["custom_test"]["bbox"] == pytest.approx(bbox, nan_ok=True)
    assert results["custom_test"]["segm"] == pytest.approx(nothing, nan_ok=True)
    table = evaluation_tables.detection_table(results)
    assert ("0.00   n/a    n/a" in table, "n/a   n/a     n/a" in table) == (objects, True)


def test_without_objects_average_precision_is_nan_despite_detections(longer_run, digits_config, tmp_path):
    trained, result = longer_run
    data = json.loads(Path(trained.DATASETS.CUSTOM.TRAIN_JSON).read_text())
    file = tmp_path / "no_objects.json"
    file.write_text(json.dumps({**data, "annotations": []}))
    weights = ["MODEL.WEIGHTS", str(result.run_folder.weights)]
    custom = ["DATASETS.CUSTOM.TEST_JSON", str(file)]
    custom += ["DATASETS.CUSTOM.TEST_IMAGES", trained.DATASETS.CUSTOM.TRAIN_IMAGES]
    overrides = [*weights, *custom, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    cfg = load_detection_config(digits_config, overrides)
    assert math.isnan(evaluate_detector(cfg)["custom_test"]["bbox"]["AP"])


def test_the_average_is_evaluated(longer_run):
    cfg, result = longer_run
    saved = torch.load(result.run_folder.weights, weights_only=True)
    model = build_model(cfg)
    model.load_state_dict(saved["raw_model"])
    raw = detector_evaluation.evaluate_datasets(cfg, model, ["custom_train"], SINGLE_PROCESS)[
        "custom_train"
    ]["bbox"]
    load_detector(model, result.run_folder.weights)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved["model"][key])
    assert raw["AP"] != result.results["custom_train"]["bbox"]["AP"]


def test_the_average_includes_every_step(train, tmp_path):
    train(
        *NO_TEST,
        "SOLVER.CHECKPOINT_PERIOD",
        "1",
        "SOLVER.CHECKPOINTS_TO_KEEP",
        "9",
        "MODEL_EMA.DECAY",
        "0.2",
    )
    states = [checkpoint(tmp_path / "run", step) for step in (1, 2, 3, 4)]
    for key in (
        "backbone.stages.1.0.project.1.running_mean",
        "proposal_generator.rpn_head.anchor_deltas.weight",
    ):
        assert states[0]["model"][key].any()
        average = states[0]["model"][key]
        for n, state in enumerate(states[1:], 1):
            decay = min(0.2, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * state["model"][key]
            torch.testing.assert_close(state["ema_state"][key], average)
        assert not torch.equal(states[-1]["ema_state"][key], states[-1]["model"][key])


def test_a_resumed_run_equals_an_uninterrupted_one(train, uninterrupted, copied_run):
    """Weights, average, optimizer and schedule are equal bit for bit, so the images, their sizes and flips are too."""
    newest = copied_run / "checkpoints/step_00000004.pth"
    newest.write_bytes(newest.read_bytes()[:1000])
    ran = train("--resume")
    assert ran.code == 0
    assert "step_00000004.pth: is corrupt" in ran.out and "trying the previous checkpoint" in ran.out
    assert "resuming after 2 steps" in ran.out
    assert_runs_equal(uninterrupted, copied_run)
    entries = [json.loads(line) for line in (copied_run / "metrics.jsonl").read_text().splitlines()]
    assert [e["iteration"] for e in entries] == [3, 4]


def test_a_resumed_run_with_augmentation_equals_an_uninterrupted_one(train, tmp_path):
    """Mosaics, jitter, colors and class-balanced sampling depend on seed and step, and not on who reads the images."""
    section = "INPUT.AUGMENTATION"
    keys = [*NO_TEST, f"{section}.MOSAIC", "0.5", f"{section}.LARGE_SCALE_JITTER", "[0.5,1.5]"]
    keys += [
        f"{section}.PHOTOMETRIC_DISTORTION",
        "0.5",
        "DATALOADER.SAMPLER_TRAIN",
        "ClassBalancedTrainingSampler",
    ]
    train(*keys)
    expected = checkpoint(tmp_path / "run", 4)
    (tmp_path / "run/checkpoints/step_00000004.pth").unlink()
    assert "resuming after 2 steps" in train(*keys, "DATALOADER.NUM_WORKERS", "1", "--resume").out
    resumed = checkpoint(tmp_path / "run", 4)
    for state in (expected, resumed):
        del state["metadata"]["detection_config"]  # has the number of workers
    assert_equal(expected, resumed)


def test_a_random_seed_is_kept_when_resuming(train, tmp_path):
    newest = tmp_path / "run/checkpoints/step_00000004.pth"
    train(*NO_TEST, "SEED", "-1")
    expected = checkpoint(tmp_path / "run", 4)
    newest.unlink()
    assert "resuming after 2 steps" in train(*NO_TEST, "SEED", "-1", "--resume").out
    assert_equal(expected, checkpoint(tmp_path / "run", 4))


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_run_can_be_resumed_after_a_signal(
    train, uninterrupted, tmp_path, monkeypatch, number, code, word
):
    read_image = detection_loaders.SeededDataset.__getitem__
    keys_read = []

    def interrupted_read(self, key):
        keys_read.append(key)
        if (
            len(keys_read) == MAX_INPUTS + 5
        ):  # the third step's first image, after the picture of the first inputs
            os.kill(os.getpid(), number)
        return read_image(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(detection_loaders.SeededDataset, "__getitem__", interrupted_read)
        ran = train()
    advice = "add --resume to continue from the newest checkpoint, if there is one"
    assert (ran.code, ran.err) == (code, f"{word}; {advice}\n")
    assert not (tmp_path / "run/model_final.pth").exists()
    assert checkpoint(tmp_path / "run", 3)["iteration"] == 2
    assert train("--resume").code == 0
    assert_runs_equal(uninterrupted, tmp_path / "run")


def test_worker_processes_read_the_same_images(train, uninterrupted, tmp_path):
    assert train("DATALOADER.NUM_WORKERS", "1").code == 0
    assert_runs_equal(uninterrupted, tmp_path / "run")


def test_a_signal_during_an_evaluation(train, tmp_path, monkeypatch):
    agree_on_interrupt = detector_evaluation.agree_on_interrupt
    calls = []

    def terminate_at_second_call(group):
        calls.append(group)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return agree_on_interrupt(group)

    monkeypatch.setattr(detector_evaluation, "agree_on_interrupt", terminate_at_second_call)
    assert train("TEST.EVAL_PERIOD", "3").code == 143
    assert len(calls) == 2
    assert checkpoint(tmp_path / "run", 3)["iteration"] == 2


def test_resuming_a_complete_run_evaluates_it_again(train, copied_run):
    ran = train("--resume")
    assert (ran.code, ran.err) == (0, "")
    assert "step 4/4" not in ran.out and " bbox " in ran.out


def test_a_run_is_not_overwritten(train, copied_run):
    weights = (copied_run / "model_final.pth").read_bytes()
    for arguments, message in (
        ([], "already contains a run; resume it (--resume)"),
        (["--resume", "SOLVER.BASE_LR", "0.1"], "SOLVER.BASE_LR has changed: was 0.003, is now 0.1"),
        (["--resume", "SOLVER.MAX_ITER", "3"], "it already has 4 steps, more than SOLVER.MAX_ITER 3"),
    ):
        ran = train(*arguments)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert message in ran.err
    assert (copied_run / "model_final.pth").read_bytes() == weights


def test_a_non_finite_loss_ends_the_run(train, tmp_path):
    ran = train("SOLVER.BASE_LR", "1e12", "SOLVER.OPTIMIZER", "SGD", "SOLVER.WARMUP_ITERS", "0")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert ran.err.startswith("error: the loss ") and " at step " in ran.err
    assert "train/0000" in ran.err and "lower SOLVER.BASE_LR" in ran.err
    assert torch.load(tmp_path / "run/diverged.pth", weights_only=True)["names"]
    assert not (tmp_path / "run/model_final.pth").exists()


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_optimizers_follow_detectron2s_keys(digits_config, name):
    keys = ["SOLVER.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", "0.3", "SOLVER.WEIGHT_DECAY_NORM", "0.1"]
    cfg = load_detection_config(digits_config, [*keys, "SOLVER.BASE_LR", "0.2"])
    model = build_model(cfg)
    optimizer = build_detector_optimizer(cfg, model)
    assert type(optimizer).__name__ == name
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decays) == len(list(model.parameters()))
    assert decays[id(model.backbone.stages[0][0][1].weight)] == 0.1
    assert decays[id(model.backbone.stages[0][0][0].weight)] == 0.3
    assert {group["lr"] for group in optimizer.param_groups} == {0.2}


def test_ignored_keys_exist_and_training_keys_are_compared(digits_config):
    cfg = load_detection_config(digits_config)
    for ignored in DETECTOR_IGNORED_KEYS:
        assert any(f"{key}.".startswith(f"{ignored}.") for key in flatten(cfg)), ignored
    fingerprint = config_fingerprint(cfg, DETECTOR_IGNORED_KEYS)
    assert {"SOLVER.BASE_LR", "DATASETS.TRAIN", "DATALOADER.FILTER_EMPTY_ANNOTATIONS"} <= fingerprint.keys()
    assert not [key for key in fingerprint if "TEST" in key]
