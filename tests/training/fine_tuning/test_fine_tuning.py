"""Fine-tuning on a small folder of images with configs/finetune."""

import numpy as np
import pytest
import yaml
from PIL import Image

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.data import build_dataset
from fbnetv3.training import train

CONFIG = configs_folder() / "finetune" / "fbnetv3_digits.yaml"


def write_digits(folder, digits, images_per_class):
    """Write some digits as an image folder, with class names that the pretrained network does not know."""
    for split, limit in (("train", images_per_class), ("val", 20)):
        dataset = build_dataset("digits", "", split)
        for digit in digits:
            class_folder = folder / split / f"digit {digit}"
            class_folder.mkdir(parents=True)
            for i in np.flatnonzero(dataset.targets == digit)[:limit]:
                Image.fromarray(dataset.images[i]).save(class_folder / f"{i}.png")
    return folder


def run(folder, data, *overrides, resume=False):
    cfg = load_config(CONFIG, ["DATA.ROOT", str(data), "OUTPUT_DIR", str(folder), *overrides])
    return train(cfg, resume=resume)


def test_pretrained_weights_beat_random_ones_after_as_many_steps(tmp_path):
    data = write_digits(tmp_path / "data", (3, 5, 8, 9), images_per_class=5)
    epochs = ["SOLVER.EPOCHS", "10", "EVAL.PERIOD", "10"]
    fine_tuned = run(tmp_path / "fine_tuned", data, *epochs)[-1]["ema_top1"]
    from_scratch = run(tmp_path / "from_scratch", data, *epochs, "MODEL.WEIGHTS", "")[-1]["ema_top1"]
    assert fine_tuned >= 90 and from_scratch <= 60  # chance is 25


@pytest.mark.parametrize(("images_per_class", "batch_size"), [(1, 3), (10, 8)])
def test_the_values_that_fit_the_images_are_logged_and_saved(tmp_path, images_per_class, batch_size):
    data = write_digits(tmp_path / "data", (1, 2, 7), images_per_class)
    folder = tmp_path / "run"
    automatic = ["SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "0"]
    curve = run(folder, data, *automatic)
    solver = yaml.safe_load((folder / "config.yaml").read_text())["SOLVER"]
    assert (solver["BATCH_SIZE"], solver["WARMUP_EPOCHS"]) == (batch_size, 0.1)
    line = f"for {3 * images_per_class} training images: SOLVER.BATCH_SIZE {batch_size}, SOLVER.WARMUP_EPOCHS 0.1"
    assert line in (folder / "log.txt").read_text()
    assert run(folder, data, *automatic, resume=True) == curve


def test_balanced_classes(tmp_path):
    """Runs with class weights, balanced sampling and focal loss learn a class with few images."""
    data = write_digits(tmp_path / "data", (3, 8), images_per_class=40)
    for image in sorted((data / "train" / "digit 8").iterdir())[2:]:
        image.unlink()
    balanced = {
        "weights": ["SOLVER.CLASS_WEIGHTING", "balanced"],
        "sampling": ["DATA.SAMPLING", "balanced"],
        "focal": ["SOLVER.LOSS", "focal", "SOLVER.CLASS_WEIGHTS", "['digit 8=20']"],
    }
    short = ["SOLVER.EPOCHS", "3", "EVAL.PERIOD", "3", "SOLVER.TRUNK_LR_FACTOR", "1.0"]
    plain = run(tmp_path / "plain", data, *short)[-1]["top1"]
    for name, overrides in balanced.items():
        assert run(tmp_path / name, data, *short, *overrides)[-1]["top1"] > plain + 10, name
    assert "class weights: digit 3 0.525, digit 8 10.5" in (tmp_path / "weights" / "log.txt").read_text()
