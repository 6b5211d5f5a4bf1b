"""Files that configs name are found next to the config that names them, wherever it is."""

import shutil

import pytest
import yaml

from fbnetv3.arch import configs_folder, dump_arch, get_arch
from fbnetv3.config import load_config

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
SHORT = {"EPOCHS": 1, "WARMUP_EPOCHS": 0.0, "BATCH_SIZE": 256}


@pytest.fixture
def config(tmp_path):
    """A config with an architecture and a recipe next to it, as a search writes them."""
    folder = tmp_path / "result"
    (folder / "archs").mkdir(parents=True)
    (folder / "archs" / "mine.yaml").write_text(dump_arch(get_arch("fbnetv3_digits")))
    (folder / "recipe.yaml").write_text("{optimizer: sgd, lr: 0.01}")
    content = {
        "_BASE_": str(DIGITS),
        "MODEL": {"ARCH": "archs/mine.yaml"},
        "RECIPE": "recipe.yaml",
        "SOLVER": SHORT,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "config.yaml"


def test_a_config_inherits_the_files_of_its_base(config, tmp_path):
    (tmp_path / "mine.yaml").write_text("_BASE_: result/config.yaml\n")
    cfg = load_config(tmp_path / "mine.yaml")
    assert str(config.parent / "archs" / "mine.yaml") == cfg.MODEL.ARCH
    assert cfg.SOLVER.LR == load_config(config).SOLVER.LR == 0.04  # SGD uses four times the lr of Table 2


def test_a_run_can_be_resumed_from_another_folder(tool, config, tmp_path, monkeypatch):
    """Architectures are compared by content, not by path."""
    monkeypatch.chdir(config.parent)
    assert tool("train_net", "--config", "config.yaml", "OUTPUT_DIR", "run").code == 0
    moved = tmp_path / "moved"
    shutil.move(config.parent, moved)
    monkeypatch.chdir(tmp_path)
    arguments = (
        "--config",
        moved / "config.yaml",
        "OUTPUT_DIR",
        moved / "run",
        "SOLVER.EPOCHS",
        "2",
        "--resume",
    )
    ran = tool("train_net", *arguments)
    assert (ran.code, ran.err) == (0, "")
    assert "(1 epoch)" in ran.out


def test_the_cost_of_a_detector_with_an_architecture_beside_its_config(tool, tmp_path):
    shipped = configs_folder() / "coco" / "faster_rcnn_fbnetv3_a_C4.yaml"
    (tmp_path / "mine.yaml").write_text(dump_arch(get_arch("fbnetv3_a_det")))
    content = {"_BASE_": str(shipped), "MODEL": {"FBNETV3": {"ARCH": "mine.yaml"}}}
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(content))
    own = tool("analyze_net", tmp_path / "detector.yaml")
    expected = tool("analyze_net", shipped)
    assert (own.code, own.err) == (0, "")
    assert own.out.splitlines()[-1].split()[1:] == expected.out.splitlines()[-1].split()[1:]
