"""Run the tools as a user does, in this process for speed."""

import contextlib
import io
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


class ToolRun(NamedTuple):
    """Exit code and output of a tool."""

    code: int
    out: str
    err: str


@pytest.fixture
def tool(monkeypatch):
    """Run a tool: `tool("train_net", "--config", ...)` runs tools/train_net.py."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        out = io.StringIO()
        err = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit:
            runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
        return ToolRun(exit.value.code, out.getvalue(), err.getvalue())

    return run
