"""The module of docs/extending.md, used by the tools as the page says."""

import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.pages import ROOT, blocks

PAGE = ROOT / "docs" / "extending.md"
DIGITS = ROOT / "configs" / "digits" / "fbnetv3_digits.yaml"
ARCH = {
    "name": "extended",
    "resolution": 32,
    "resize": 32,
    "stages": [
        {"rows": [{"block": "conv", "kernel": 3, "channels": 8, "stride": 2, "act": "mish"}]},
        {"rows": [{"block": "pointwise", "channels": 16, "stride": 2, "act": "mish"}]},
        {"rows": [{"block": "mbpool", "expansion": 4, "channels": 32, "act": "hswish"}]},
    ],
}
TRAINING = (
    "MODEL.ARCH extended.yaml DATA.NAME half_digits INPUT.CROP central INPUT.AUTO_AUGMENT noise "
    "SOLVER.LOSS poly1 SOLVER.OPTIMIZER nadam SOLVER.LR 0.002 SOLVER.SCHEDULE linear "
    "SOLVER.EPOCHS 1 SOLVER.WARMUP_EPOCHS 0 DATA.WORKERS 0 OUTPUT_DIR run"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's project: the page's module, and an architecture with its block and activation."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "my_extensions.py").write_text("\n\n".join(blocks(PAGE, "python")))
    (folder / "extended.yaml").write_text(yaml.safe_dump(ARCH))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """Runs a tool in that project and returns its output."""

    def run(tool, *arguments):
        command = [sys.executable, ROOT / "tools" / f"{tool}.py", *arguments]
        result = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.fixture(scope="module")
def trained(run):
    return run("train_net", "--config", DIGITS, "--import", "my_extensions", *TRAINING.split())


def test_each_example_takes_at_most_twenty_lines():
    for block in blocks(PAGE, "python"):
        assert len([line for line in block.splitlines() if line.strip()]) <= 20


def test_a_network_of_the_block_and_the_activation_is_costed(run):
    table = run("analyze_net", "extended.yaml", "--import", "my_extensions", "--stages")
    assert re.search(r"^1 +pointwise +1 +8 x 8 x 16", table, re.MULTILINE)


def test_a_run_uses_dataset_crop_augmentation_loss_optimizer_and_schedule(trained):
    assert "on half_digits: input 32 px, 718 training images, 180 validation images" in trained


def test_names_are_unknown_without_the_import(folder):
    command = [sys.executable, ROOT / "tools" / "train_net.py", "--config", DIGITS, "SOLVER.LOSS", "poly1"]
    result = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 2
    assert "SOLVER.LOSS" in result.stderr and "'poly1'" in result.stderr


def test_the_config_of_a_run_names_the_imported_modules(run, trained):
    assert "top1" in run("train_net", "--config", "run/config.yaml", "--eval-only")


def test_the_format_is_verified_exported_and_read_again(run, folder, trained):
    pytest.importorskip("onnxruntime", reason="pip install 'fbnetv3[export]'")
    arguments = ["--config", "run/config.yaml", "--import", "my_extensions"]
    assert "extended" in run("export_net", *arguments, "--format", "ort", "--output", "exported")
    assert [path.name for path in (folder / "exported").glob("model*")] == ["model.ort"]
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "digit.png")
    assert "%" in run("classify", "--import", "my_extensions", "exported", "digit.png")


def test_the_network_is_exported_to_onnx(run, folder, trained):
    pytest.importorskip("onnxruntime", reason="pip install 'fbnetv3[export]'")
    run(
        "export_net",
        "--config",
        "run/config.yaml",
        "--import",
        "my_extensions",
        "--format",
        "onnx",
        "--output",
        "onnx",
    )
    assert (folder / "onnx" / "model.onnx").is_file()


def test_a_search_uses_the_evaluator_and_the_executor(run, folder):
    search = {
        "imports": ["my_extensions"],
        "space": {"name": "widths", "variables": {"width": {"range": [1, 16]}, "depth": {"range": [1, 4]}}},
        "evaluator": "width_matters",
        "executor": "verbose",
        "epochs": 2,
        "evaluations": 6,
        "initial_trials": 4,
        "predictor": {"members": 4, "width": 16, "frozen_epochs": 5, "finetune_epochs": 5},
        "budgets": [],
    }
    (folder / "search.yaml").write_text(yaml.safe_dump(search))
    assert "trial 0" in run("search_net", "--config", "search.yaml", "--output", "search")
