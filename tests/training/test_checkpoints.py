"""Checkpoints: which are kept, which are gone on from, and what becomes of damaged ones and of full disks."""

import os
import subprocess
import sys

import pytest
import torch
from torchvision.transforms import v2

from fbnetv3.errors import OutputError, WeightsError
from fbnetv3.training.losses import CrossEntropy
from fbnetv3.training.run_state.checkpoints import Checkpoints
from fbnetv3.training.trainer import DivergedError
from fbnetv3.training.training_hooks import Evaluation
from fbnetv3.utils.files import atomic_write
from tests.training.small_trainer import STATE, checkpointing, make_trainer, weights


def test_what_has_diverged_is_not_saved(tmp_path):
    def objective(model, images, targets):
        return CrossEntropy()(model, images, targets) * (float("inf") if trainer.progress.step == 4 else 1)

    checkpoints = Checkpoints(tmp_path)
    trainer = make_trainer([checkpointing(checkpoints, tmp_path, steps=1)])
    trainer.objective = objective
    with pytest.raises(DivergedError, match="inf at step 5"):
        trainer.run()
    assert checkpoints.load_latest()[1]["step"] == 4
    trainer.loss = torch.tensor(float("nan"))  # as a GPU would see it, after the step
    with pytest.raises(DivergedError):
        trainer._call("on_interrupt")
    assert checkpoints.latest().name == "step_00000004.pth"


def test_checkpoints_of_later_steps_are_of_another_past(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (5, 9):
        (tmp_path / f"step_{step:08d}.pth").write_bytes(b"damaged")
    checkpoints.save(7, STATE)
    assert [path.name for path in checkpoints.all()] == ["step_00000007.pth"]


def test_checkpoints_between_epochs(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=99)
    make_trainer([checkpointing(checkpoints, tmp_path, steps=3)]).run()
    assert [int(path.stem[5:]) for path in checkpoints.all()] == [3, 4, 6, 8, 9, 12, 15, 16]


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {**STATE, "step": step})
    whole = (tmp_path / "step_00000003.pth").read_bytes()
    (tmp_path / "step_00000003.pth").write_bytes(whole[: len(whole) // 2])
    path, state = checkpoints.load_latest()
    assert (path.name, state["step"]) == ("step_00000002.pth", 2)
    assert "step_00000003.pth: is damaged" in caplog.text and "trying the one before" in caplog.text
    for path in checkpoints.all():
        path.write_bytes(b"")
    with pytest.raises(WeightsError, match="no checkpoint is whole"):
        checkpoints.load_latest()
    assert Checkpoints(tmp_path / "nowhere").load_latest() is None


def test_the_best_weights_are_kept(tmp_path):
    tops = iter([10.0, 30.0, 20.0, 25.0])
    hooks = [Evaluation(lambda: {"top1": next(tops)}), checkpointing(Checkpoints(tmp_path), tmp_path)]
    make_trainer(hooks).run()
    best = torch.load(tmp_path / "best.pth")
    assert best["metrics"] == {"val_top1": 30.0}
    assert not torch.equal(best["model"]["2.weight"], torch.load(tmp_path / "final.pth")["model"]["2.weight"])


def test_the_newest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for epoch in (1, 2, 9, 10, 11):
        checkpoints.save(epoch, {**STATE, "epoch": epoch})
    assert [path.name for path in checkpoints.all()] == ["step_00000010.pth", "step_00000011.pth"]
    assert checkpoints.load(checkpoints.latest())["epoch"] == 11
    assert Checkpoints(tmp_path / "nowhere").latest() is None


def test_a_resumed_run_has_its_average_back(tmp_path):
    mixup = v2.MixUp(alpha=0.2, num_classes=2)
    checkpoints = Checkpoints(tmp_path)
    saving = checkpointing(checkpoints, tmp_path)
    whole = make_trainer([saving], ema=0.9, mixup=mixup)
    torch.manual_seed(1)
    whole.run()
    final = torch.load(tmp_path / "final.pth")
    assert not torch.equal(final["model"]["2.weight"], final["model_ema"]["2.weight"])
    for saved in checkpoints.all():
        resumed = make_trainer(ema=0.9, mixup=mixup)
        resumed.load_state_dict(checkpoints.load(saved))
        resumed.run()
        assert torch.equal(weights(resumed), weights(whole))
        for key, value in resumed.ema.module.state_dict().items():
            assert torch.equal(value, final["model_ema"][key])


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    (tmp_path / "step_00000001.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="step_00000001.pth: is damaged"):
        Checkpoints(tmp_path).load(tmp_path / "step_00000001.pth")
    torch.save({"model": {}}, tmp_path / "step_00000001.pth")
    with pytest.raises(WeightsError, match="is not a checkpoint of a training run"):
        Checkpoints(tmp_path).load(tmp_path / "step_00000001.pth")


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as f:
        f.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="cannot be written: No such file"), atomic_write(tmp_path / "nowhere" / "x"):
        pass


def test_a_full_disk(tmp_path):
    """In a process whose files may be 100 kB at most, as on a full disk: one line, and the older checkpoint stays."""
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
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert "step_00000002.pth: cannot be written" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == ["step_00000001.pth"]
