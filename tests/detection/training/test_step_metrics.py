"""Losses that are read one step late, as on GPUs: the same metrics, and weights that a non-finite loss leaves whole."""

import json

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn, optim

from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.training import detector_setup
from fbnetv3.detection.training.checked_trainer import CheckedTrainer
from fbnetv3.detection.training.detector_setup import build_detector_optimizer, use_own_gpu
from fbnetv3.detection.training.detector_training import train_detector
from fbnetv3.detection.training.step_metrics import StepInfo, exchange_step
from fbnetv3.training.optimizers import is_fused
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, ProcessGroup
from fbnetv3.training.trainer import DivergedError

NO_TEST = ["DATASETS.CUSTOM.TEST_ANNOTATIONS", "", "DATASETS.CUSTOM.TEST_IMAGES", ""]


@pytest.fixture
def fused(monkeypatch):
    """Use the fused optimizers on the CPU, which have their own kernels there, and read losses late."""
    monkeypatch.setattr(detector_setup, "prefers_fused", lambda cfg: True)


def losses_by_step(folder):
    entries = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {entry["iteration"]: entry["total_loss"] for entry in entries if "total_loss" in entry}


def test_late_losses_are_those_of_their_step(digits_config, tmp_path, monkeypatch):
    """The last line of the metrics has the last step, with the median over all of them."""
    histories = []
    read_losses = CheckedTrainer.read_losses

    def recording_read(self):
        read_losses(self)
        histories.append(self.storage.histories().get("total_loss"))

    monkeypatch.setattr(CheckedTrainer, "read_losses", recording_read)
    values = []
    for name, is_late in (("now", False), ("late", True)):
        with monkeypatch.context() as patch:
            patch.setattr(detector_setup, "prefers_fused", lambda cfg, is_late=is_late: is_late)
            out = tmp_path / name
            cfg = load_detection_config(digits_config, [*NO_TEST, "OUTPUT_DIR", str(out)])
            train_detector(cfg)
        values.append(histories[-1].values())
    assert (
        [iteration for _, iteration in values[0]]
        == [iteration for _, iteration in values[1]]
        == [0, 1, 2, 3]
    )
    assert [loss for loss, _ in values[1]] == pytest.approx([loss for loss, _ in values[0]], rel=1e-4)
    assert losses_by_step(tmp_path / "late").keys() == losses_by_step(tmp_path / "now").keys() == {3}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_step_with_a_non_finite_loss_leaves_the_weights_whole(
    digits_config, tmp_path, monkeypatch, fused, optimizer
):
    """Even though the next step has begun when the loss is read."""
    write_metrics = CheckedTrainer._write_metrics
    run_step = CheckedTrainer.run_step
    weights = {}
    steps = []

    def write_nan(self, loss_dict, *args, **kwargs):
        factor = torch.nan if self.iter == 2 else 1
        write_metrics(self, {key: value * factor for key, value in loss_dict.items()}, *args, **kwargs)

    def recording_run_step(self):
        steps.append(self.iter)
        if self.iter == 2:
            weights.update((key, value.clone()) for key, value in self.raw_model.named_parameters())
        run_step(self)

    monkeypatch.setattr(CheckedTrainer, "_write_metrics", write_nan)
    monkeypatch.setattr(CheckedTrainer, "run_step", recording_run_step)
    overrides = [*NO_TEST, "SOLVER.OPTIMIZER", optimizer, "OUTPUT_DIR", str(tmp_path / "run")]
    with pytest.raises(DivergedError, match=r"the loss \(\w+\) is nan at step 3 "):
        train_detector(load_detection_config(digits_config, overrides))
    assert steps == [0, 1, 2, 3]
    saved = torch.load(tmp_path / "run/diverged.pth", weights_only=True)["model"]
    assert len(weights) > 50
    for key, value in weights.items():
        assert torch.equal(saved[key], value), key


def test_losses_of_a_step():
    losses = {"loss_cls": torch.tensor(0.25), "loss_box_reg": torch.tensor(0.5)}
    metrics = exchange_step(losses, StepInfo(7, 0.1, [], 0.01), SINGLE_PROCESS)
    assert metrics.mean_losses() == metrics.own_losses() == {"loss_cls": 0.25, "loss_box_reg": 0.5}
    assert metrics.is_non_finite() == 0
    with EventStorage(9) as storage:
        metrics.write(storage)
    assert storage.latest() == {
        "loss_cls": (0.25, 7),
        "loss_box_reg": (0.5, 7),
        "total_loss": (0.75, 7),
        "data_time": (0.01, 7),
        "rank_data_time": (0.01, 7),
    }


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_non_finite_losses_are_known_on_the_device(value):
    losses = {"loss_cls": torch.tensor(0.25), "loss_box_reg": torch.tensor(value)}
    assert exchange_step(losses, StepInfo(0, 0.1, [], 0.0), SINGLE_PROCESS).is_non_finite() == 1


def solver_config(digits_config, *overrides, device="cpu"):
    cfg = load_detection_config(digits_config, overrides).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    return cfg


def updated_weights(cfg, states=()):
    """Return the weights of a small network after two steps, and the state of the optimizer, which may be loaded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = build_detector_optimizer(cfg, model)
    for state in states:
        optimizer.load_state_dict(state)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.arange(12.0).view(4, 3)).square().sum().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), optimizer


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_fused_optimizers_take_the_steps_of_the_others(digits_config, name):
    overrides = [
        "SOLVER.OPTIMIZER",
        name,
        "SOLVER.BIAS_LR_FACTOR",
        "2.0",
        "SOLVER.WEIGHT_DECAY_NORM",
        "0.1",
    ]
    weights, optimizer = updated_weights(solver_config(digits_config, *overrides))
    fused_weights, fused_optimizer = updated_weights(
        solver_config(digits_config, *overrides, device="cuda")
    )
    assert (is_fused(optimizer), is_fused(fused_optimizer)) == (False, True)
    torch.testing.assert_close(fused_weights, weights)
    # A state of one device continues on the other, with the implementation of that device
    continued, _ = updated_weights(solver_config(digits_config, *overrides), [fused_optimizer.state_dict()])
    fused_continued, resumed = updated_weights(
        solver_config(digits_config, *overrides, device="cuda"), [optimizer.state_dict()]
    )
    assert is_fused(resumed)
    torch.testing.assert_close(fused_continued, continued)


def test_gradient_clipping_needs_other_optimizers(digits_config):
    """detectron2 clips before the step, in which a fused optimizer would divide by float16's scale."""
    clipping = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True"]
    for name in ("SGD", "AdamW"):
        _, optimizer = updated_weights(
            solver_config(digits_config, *clipping, "SOLVER.OPTIMIZER", name, device="cuda")
        )
        assert not is_fused(optimizer)
        assert isinstance(optimizer, getattr(optim, name))


def test_each_process_uses_its_own_gpu(digits_config):
    cfg = solver_config(digits_config, device="cuda:3")
    assert use_own_gpu(cfg, SINGLE_PROCESS).MODEL.DEVICE == "cuda:3"
    # Its own is the current one
    assert use_own_gpu(cfg, ProcessGroup(rank=1, size=2, gpu_index=1)).MODEL.DEVICE == "cuda"
    cpu = solver_config(digits_config)
    assert use_own_gpu(cpu, ProcessGroup(size=2)).MODEL.DEVICE == "cpu"
