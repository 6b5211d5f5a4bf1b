"""Checkpoints: which ones are kept, which one a run resumes from, corrupt files, and full disks."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from fbnetv3.errors import OutputError, WeightsError
from fbnetv3.training.losses import supervised_objective
from fbnetv3.training.run_state.checkpoints import (
    Checkpoints,
    map_tensors,
    numbered_checkpoints,
    prune_checkpoints,
    state_on_host,
)
from fbnetv3.training.trainer import DivergedError
from fbnetv3.training.training_hooks import EvaluationHook
from fbnetv3.utils.files import atomic_write
from tests.training.small_trainer import EMPTY_STATE, flat_weights, make_checkpointing, make_trainer


def test_diverged_weights_are_not_saved(tmp_path):
    def objective(model, images, targets):
        return supervised_objective(model, images, targets) * (
            float("inf") if trainer.progress.step == 4 else 1
        )

    checkpointing = make_checkpointing(tmp_path, steps=1)
    trainer = make_trainer([checkpointing])
    trainer.objective = objective
    with pytest.raises(DivergedError, match="inf at step 5"):
        trainer.run()
    assert checkpointing.checkpoints.load_newest()[1]["step"] == 4


def test_a_loss_that_has_not_arrived_is_awaited_before_a_checkpoint(tmp_path):
    """As on a GPU, which may still be computing the last steps."""

    def objective(model, images, targets):
        return supervised_objective(model, images, targets) * float("nan")

    checkpointing = make_checkpointing(tmp_path)
    trainer = make_trainer([checkpointing], loss_delay=4)
    trainer.objective = objective
    trainer.step(next(iter(trainer.loader)))
    with pytest.raises(DivergedError, match="nan at step 1"):
        checkpointing.on_interrupt(trainer)
    assert not checkpointing.checkpoints.paths()


def test_checkpoints_of_later_steps_are_deleted(tmp_path):
    """They are corrupt, so the run resumed from an earlier one."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (5, 9):
        (tmp_path / f"step_{step:08d}.pth").write_bytes(b"corrupt")
    checkpoints.save(7, EMPTY_STATE)
    assert [path.name for path in checkpoints.paths()] == ["step_00000007.pth"]


def test_pruning_keeps_other_prefixes_and_names_without_a_number(tmp_path):
    names = ["model_0000001.pth", "model_0000002.pth", "model_final.pth", "step_00000001.pth"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    prune_checkpoints(tmp_path / "model_0000002.pth", keep=1)
    prune_checkpoints(tmp_path / "model_final.pth", keep=1)
    assert sorted(os.listdir(tmp_path)) == names[1:]
    assert [path.name for path in numbered_checkpoints(tmp_path)] == [
        "step_00000001.pth",
        "model_0000002.pth",
    ]


def test_checkpoints_between_epochs(tmp_path):
    checkpointing = make_checkpointing(tmp_path, keep=99, steps=3)
    make_trainer([checkpointing]).run()
    steps = [int(path.stem[5:]) for path in checkpointing.checkpoints.paths()]
    assert steps == [3, 4, 6, 8, 9, 12, 15, 16]


def test_a_corrupt_newest_checkpoint_is_skipped(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {**EMPTY_STATE, "step": step})
    content = (tmp_path / "step_00000003.pth").read_bytes()
    (tmp_path / "step_00000003.pth").write_bytes(content[: len(content) // 2])
    path, state = checkpoints.load_newest()
    assert (path.name, state["step"]) == ("step_00000002.pth", 2)
    assert (
        "step_00000003.pth: is corrupt" in caplog.text and "trying the previous checkpoint" in caplog.text
    )
    for path in checkpoints.paths():
        path.write_bytes(b"")
    with pytest.raises(WeightsError, match="all checkpoints are corrupt"):
        checkpoints.load_newest()
    assert Checkpoints(tmp_path / "nowhere").load_newest() is None


def test_a_newest_checkpoint_with_infinite_statistics_is_skipped(tmp_path, caplog):
    """Batch statistics can overflow while the loss of training is finite."""
    checkpoints = Checkpoints(tmp_path)
    for step, variance in ((1, 1.0), (2, float("inf"))):
        weights = {"1.running_var": torch.tensor([1.0, variance])}
        checkpoints.save(step, {**EMPTY_STATE, "step": step, "model": weights})
    assert checkpoints.load_newest()[1]["step"] == 1
    assert "step_00000002.pth: NaN or infinity in 1.running_var" in caplog.text


def test_the_best_weights_are_kept(tmp_path):
    top1 = iter([10.0, 30.0, 20.0, 25.0])
    make_trainer(
        [EvaluationHook(lambda models: [{"top1": next(top1)}]), make_checkpointing(tmp_path)]
    ).run()
    best = torch.load(tmp_path / "model_best.pth")
    final = torch.load(tmp_path / "model_final.pth")
    assert best["metrics"] == {"val_top1": 30.0}
    assert not torch.equal(best["model"]["2.weight"], final["model"]["2.weight"])


def test_the_newest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for epoch in (1, 2, 9, 10, 11):
        checkpoints.save(epoch, {**EMPTY_STATE, "epoch": epoch})
    assert [path.name for path in checkpoints.paths()] == ["step_00000010.pth", "step_00000011.pth"]
    assert checkpoints.load(checkpoints.paths()[-1])["epoch"] == 11
    assert Checkpoints(tmp_path / "nowhere").paths() == []


def test_a_resumed_run_restores_its_average(tmp_path):
    mixup = v2.MixUp(alpha=0.2, num_classes=2)
    checkpointing = make_checkpointing(tmp_path)
    uninterrupted = make_trainer([checkpointing], ema=0.9, mixup=mixup)
    torch.manual_seed(1)
    uninterrupted.run()
    final = torch.load(tmp_path / "model_final.pth")
    assert not torch.equal(final["model"]["2.weight"], final["model_ema"]["2.weight"])
    for path in checkpointing.checkpoints.paths():
        resumed = make_trainer(ema=0.9, mixup=mixup)
        resumed.load_state_dict(checkpointing.checkpoints.load(path))
        resumed.run()
        assert torch.equal(flat_weights(resumed), flat_weights(uninterrupted))
        for key, value in resumed.ema.module.state_dict().items():
            assert torch.equal(value, final["model_ema"][key])


def test_a_state_on_the_host_is_saved_as_it_is():
    weights = nn.Linear(2, 2).state_dict()
    state = state_on_host({"model": weights, "names": ("a", 1)})
    assert all(state["model"][key] is value for key, value in weights.items())


def test_tensors_are_replaced_in_a_state_that_stays_the_same_otherwise():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(2, 4, 3, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": [None, torch.ones(2)]}
    mapped = map_tensors(state, torch.clone)
    assert mapped["model"]["0.weight"] is not state["model"]["0.weight"]
    assert mapped["model"]["0.weight"].stride() == state["model"]["0.weight"].stride()
    assert mapped["model"]._metadata == state["model"]._metadata
    assert mapped["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    buffers = [saved["optimizer"]["state"][0]["momentum_buffer"] for saved in (mapped, state)]
    assert torch.equal(*buffers) and buffers[0] is not buffers[1]
    assert mapped["rng"][0] is None and torch.equal(mapped["rng"][1], torch.ones(2))


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_errors_name_the_corrupt_checkpoint(tmp_path, content):
    (tmp_path / "step_00000001.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="step_00000001.pth: is corrupt"):
        Checkpoints(tmp_path).load(tmp_path / "step_00000001.pth")
    torch.save({"model": {}}, tmp_path / "step_00000001.pth")
    with pytest.raises(WeightsError, match="is not a checkpoint of a training run"):
        Checkpoints(tmp_path).load(tmp_path / "step_00000001.pth")


def test_a_failed_write_keeps_the_old_file_and_leaves_no_partial_one(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as f:
        f.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(OutputError, match="cannot be written: No such file"),
        atomic_write(tmp_path / "nowhere" / "x"),
    ):
        pass


def test_a_full_disk(tmp_path):
    """A limit on file sizes simulates a full disk: the error is one line, and the older checkpoint is kept."""
    script = """
import resource, signal, sys, torch
from pathlib import Path
from fbnetv3.training.run_state.checkpoints import Checkpoints
from fbnetv3.errors import OutputError
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, {"model": {}, "optimizer": {}, "epoch": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save(2, {"model": {"x": torch.zeros(1_000_000)}, "optimizer": {}, "epoch": 2})
except OutputError as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert "step_00000002.pth: cannot be written" in process.stdout, process.stderr
    assert os.listdir(tmp_path) == ["step_00000001.pth"]
