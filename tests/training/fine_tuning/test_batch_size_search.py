"""The largest batch that fits in the memory of a simulated GPU, on which larger steps run out of memory."""

import logging

import pytest
import torch
import yaml

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.data.batches.device_loader import DeviceLoader
from fbnetv3.errors import UsageError
from fbnetv3.training import Trainer, train, train_classifier
from fbnetv3.training.fine_tuning.batch_size_search import halve_until_it_fits

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
SHORT = "SOLVER.EPOCHS 1 SOLVER.WARMUP_EPOCHS 0 INPUT.RESOLUTION 16 SOLVER.FIT_MEMORY True SOLVER.BATCH_SIZE 512"


def memory_for(limit, tried=None):
    def run_step(batch_size):
        if tried is not None:
            tried.append(batch_size)
        if batch_size > limit:
            raise torch.cuda.OutOfMemoryError

    return run_step


def test_batches_are_halved():
    tried = []
    assert halve_until_it_fits(memory_for(100, tried), 300, 2) == 75
    assert tried == [300, 150, 75]


def test_nothing_fits():
    assert halve_until_it_fits(memory_for(3), 256, 4) == 0


def test_other_errors_are_raised():
    def fail(batch_size):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        halve_until_it_fits(fail, 256, 2)


@pytest.fixture
def gpu(monkeypatch):
    """Make steps on more than 300 images run out of memory, as on a GPU, and return the tried batch sizes."""
    tried = []
    step = Trainer.step

    def limited_step(trainer, batch):
        memory_for(300, tried)(len(batch.targets))
        step(trainer, batch)

    monkeypatch.setattr(Trainer, "step", limited_step)
    monkeypatch.setattr(
        "fbnetv3.training.fine_tuning.batch_size_search._has_own_memory", lambda device: True
    )
    return tried


def make_config(folder, *overrides):
    return load_config(DIGITS, [*SHORT.split(), "OUTPUT_DIR", str(folder), *overrides])


def test_a_run_continues_with_the_batch_that_fits(tmp_path, gpu):
    train(make_config(tmp_path / "run"))
    assert gpu == [512, 256, 256, *[256] * 5]  # two trial steps, then 1,437 images
    run_config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert run_config["SOLVER"]["BATCH_SIZE"] == 256
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "for 1437 training images and the GPU's memory: SOLVER.BATCH_SIZE 256" in log


def test_trial_steps_change_nothing(tmp_path, gpu):
    """The run has the weights of one that was started with this batch size."""
    searched = train(make_config(tmp_path / "searched"))
    started = train(
        make_config(tmp_path / "started", "SOLVER.BATCH_SIZE", "256", "SOLVER.FIT_MEMORY", "False")
    )
    assert searched == started


def test_images_that_the_gpu_keeps_take_their_memory_before_the_trial_steps(tmp_path, gpu, monkeypatch):
    read = DeviceLoader._read_images

    def read_images(loader):
        gpu.append(f"{len(loader.dataset)} images")
        return read(loader)

    monkeypatch.setattr(DeviceLoader, "_read_images", read_images)
    train(make_config(tmp_path / "run", "DATA.ON_DEVICE", "always"))
    assert gpu[:4] == ["1437 images", "360 images", 512, 256]


def test_a_run_in_which_nothing_fits_is_refused(tmp_path, gpu):
    accumulate = ["SOLVER.ACCUMULATE", "200"]
    with pytest.raises(UsageError, match="SOLVER.FIT_MEMORY: not even 400 images fit in the GPU's memory"):
        train(make_config(tmp_path / "run", *accumulate))


def test_cpus_have_no_such_limit(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train_classifier(make_config(tmp_path / "run"), progress=False)
    assert "SOLVER.FIT_MEMORY has no effect on cpu" in caplog.text
    solver = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["SOLVER"]
    assert solver["BATCH_SIZE"] == 512
