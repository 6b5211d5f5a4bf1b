"""Which weights a config evaluates, and the config of a run whose folder has moved."""

import pytest

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.errors import UsageError
from fbnetv3.training.run_state.run_folder import RunFolder, select_weights

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"


@pytest.fixture
def run(tmp_path):
    """Return the folder of a run that started from start.pth."""
    folder = RunFolder(tmp_path / "run")
    folder.prepare(load_config(DIGITS, ["MODEL.WEIGHTS", "start.pth", "OUTPUT_DIR", str(folder.path)]))
    folder.weights.touch()
    return folder


def config(run, *overrides):
    return load_config(DIGITS, ["OUTPUT_DIR", str(run.path), *overrides])


def test_the_result_of_a_run_comes_before_its_start(run):
    assert select_weights(config(run, "MODEL.WEIGHTS", "start.pth")) == str(run.weights)
    assert select_weights(config(run)) == str(run.weights)


def test_other_weights_than_the_runs_start_are_meant(run):
    assert select_weights(config(run, "MODEL.WEIGHTS", "other.pth")) == "other.pth"


def test_a_run_without_weights_is_not_its_start(run):
    run.weights.unlink()
    with pytest.raises(UsageError, match="the run that started from start.pth has no weights yet"):
        select_weights(config(run, "MODEL.WEIGHTS", "start.pth"))


def test_weights_on_the_command_line_come_first(run):
    assert select_weights(config(run, "MODEL.WEIGHTS", "start.pth"), ["MODEL.WEIGHTS"]) == "start.pth"


def test_without_a_run(tmp_path):
    nothing = ["OUTPUT_DIR", str(tmp_path / "nothing")]
    assert select_weights(load_config(DIGITS, nothing)) == ""
    assert select_weights(load_config(DIGITS, [*nothing, "MODEL.WEIGHTS", "start.pth"])) == "start.pth"


def test_the_config_of_a_run_describes_its_folder(run, tmp_path):
    moved = run.path.rename(tmp_path / "moved")
    assert str(moved) == load_config(moved / "config.yaml").OUTPUT_DIR
    assert load_config(moved / "config.yaml", ["OUTPUT_DIR", "other"]).OUTPUT_DIR == "other"


def test_a_config_of_this_name_elsewhere_is_not_a_runs(tmp_path):
    (tmp_path / "config.yaml").write_text("OUTPUT_DIR: output/mine\n")
    assert load_config(tmp_path / "config.yaml").OUTPUT_DIR == "output/mine"
