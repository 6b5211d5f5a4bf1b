"""Run the `fbnetv3` command in this process."""

import contextlib
import io
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fbnetv3.commands.cli import main
from tests.tools.conftest import ToolRun


@pytest.fixture
def fbnetv3(monkeypatch):
    """Run `fbnetv3 ARGUMENTS`, with bytes on standard input."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["fbnetv3", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as exit,
        ):
            main()
        return ToolRun(exit.value.code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def photos(tmp_path):
    """Return a folder with the digits 0 to 3, one of them in a subfolder, a corrupt file and a text."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    images = load_digits().images
    for digit, path in enumerate(("0.png", "1.png", "2.png", "more/3.png")):
        Image.fromarray((images[digit] * 15.9).astype(np.uint8)).resize((64, 48)).save(folder / path)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8nonsense")
    (folder / "notes.txt").write_text("no image")
    return folder
