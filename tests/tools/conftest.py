"""Run the tools as a user does, in this process for speed; a small dataset and a training config for it."""

import contextlib
import io
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

TOOLS = Path(__file__).resolve().parents[2] / "tools"


class ToolRun(NamedTuple):
    """Exit code and output of a tool."""

    code: int
    out: str
    err: str


def run_tool_once(name, *arguments):
    """Run tools/NAME.py with arguments, which may be of any type, as the main program."""
    out = io.StringIO()
    err = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as exit,
    ):
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
    return ToolRun(exit.value.code, out.getvalue(), err.getvalue())


@pytest.fixture
def tool():
    """Run a tool: `tool("train_net", "--config", ...)` runs tools/train_net.py."""
    return run_tool_once


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a dataset of two easy classes, in ImageNet's layout."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, base in (("dark", 0), ("light", 150)):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(base, base + 100, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}.jpg")
    return tmp_path / "data"


@pytest.fixture
def config(tmp_path, folder):
    """Return a short training config for the dataset in `folder`."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"MODEL: {{ARCH: fbnetv3_digits}}\n"
        f"DATA: {{NAME: imagefolder, ROOT: {folder}, WORKERS: 0}}\n"
        f"SOLVER: {{EPOCHS: 1, WARMUP_EPOCHS: 0.0, BATCH_SIZE: 8, LR: 0.01}}\n"
        f"OUTPUT_DIR: {tmp_path / 'run'}\n"
    )
    return path
