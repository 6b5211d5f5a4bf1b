"""tools/find_lr.py: a figure and a suggestion, and errors in one line."""

from PIL import Image

from tests.tools.conftest import TOOLS

DIGITS = TOOLS.parent / "configs" / "digits" / "fbnetv3_digits.yaml"


def test_a_suggestion_and_a_figure(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--steps", 12, "--lowest", 0.01, "--highest", 1, "INPUT.RESOLUTION", 16]
    done = tool("find_lr", "--config", DIGITS, *options, "OUTPUT_DIR", "run")
    assert done.code == 0, done.err
    name, value = done.out.split()[:2]
    assert name == "SOLVER.LR" and 0.001 <= float(value) <= 0.1
    assert done.out.strip().endswith("lr_range.png")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["lr_range.png"]
    with Image.open(tmp_path / "lr_range.png") as figure:
        assert figure.format == "PNG" and figure.width > 300


def test_bounds_in_the_wrong_order(tool):
    done = tool("find_lr", "--config", DIGITS, "--lowest", 1, "--highest", 0.1)
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: the lowest learning rate, 1, must be above 0 and below the highest, 0.1\n"
