"""Files that configs name: found beside the file that names them, and the same wherever they lie."""

import shutil

import pytest
import yaml

from fbnetv3.arch import configs_folder, dump_arch, get_arch
from fbnetv3.config import load_config

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
SHORT = {"EPOCHS": 1, "WARMUP_EPOCHS": 0.0, "BATCH_SIZE": 256}


@pytest.fixture
def found(tmp_path):
    """A config with an architecture and a recipe beside it, as a search leaves them."""
    folder = tmp_path / "found"
    (folder / "archs").mkdir(parents=True)
    (folder / "archs" / "mine.yaml").write_text(dump_arch(get_arch("fbnetv3_digits")))
    (folder / "recipe.yaml").write_text("{optimizer: sgd, lr: 0.01}")
    content = {"_BASE_": str(DIGITS), "MODEL": {"ARCH": "archs/mine.yaml"}, "RECIPE": "recipe.yaml", "SOLVER": SHORT}
    (folder / "found.yaml").write_text(yaml.safe_dump(content))
    return folder / "found.yaml"


def test_a_config_inherits_the_files_of_its_base(found, tmp_path):
    (tmp_path / "mine.yaml").write_text("_BASE_: found/found.yaml\n")
    cfg = load_config(tmp_path / "mine.yaml")
    assert str(found.parent / "archs" / "mine.yaml") == cfg.MODEL.ARCH
    assert cfg.SOLVER.LR == load_config(found).SOLVER.LR == 0.04  # SGD learns at four times lr, as in Table 2


def test_a_run_goes_on_from_another_folder(tool, found, tmp_path, monkeypatch):
    """The architecture is compared by what it is, not by what its path is called."""
    monkeypatch.chdir(found.parent)
    assert tool("train_net", "--config", "found.yaml", "OUTPUT_DIR", "run").code == 0
    moved = tmp_path / "moved"
    shutil.move(found.parent, moved)
    monkeypatch.chdir(tmp_path)
    again = ("--config", moved / "found.yaml", "OUTPUT_DIR", moved / "run", "SOLVER.EPOCHS", "2", "--resume")
    ran = tool("train_net", *again)
    assert (ran.code, ran.err) == (0, "")
    assert "after 1 epochs" in ran.out


def test_the_cost_of_a_detector_with_an_architecture_beside_its_config(tool, tmp_path):
    coco = configs_folder() / "coco"
    (tmp_path / "mine.yaml").write_text(dump_arch(get_arch("fbnetv3_a_det")))
    content = {"_BASE_": str(coco / "faster_rcnn_fbnetv3_a_C4.yaml"), "MODEL": {"FBNETV3": {"ARCH": "mine.yaml"}}}
    (tmp_path / "detector.yaml").write_text(yaml.safe_dump(content))
    mine, ours = (tool("analyze_net", file) for file in (tmp_path / "detector.yaml", coco / content["_BASE_"]))
    assert (mine.code, mine.err) == (0, "")
    assert mine.out.splitlines()[-1].split()[1:] == ours.out.splitlines()[-1].split()[1:]
