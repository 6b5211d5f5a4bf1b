"""tools/install_detectron2.py, which must not install anything unless it is asked to."""

import runpy
import subprocess
import sys

import pytest

from tests.pages import ROOT


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--unknown", 2)])
def test_options_install_nothing(option, code, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("ran a command"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "torch" else None)
    monkeypatch.setattr(sys, "argv", ["install_detectron2.py", option])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "tools" / "install_detectron2.py"), run_name="__main__")
    assert exit.value.code == code
    assert "usage: install_detectron2.py" in "".join(capsys.readouterr())


def test_an_installed_detectron2_is_kept(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("ran a command"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(sys, "argv", ["install_detectron2.py"])
    runpy.run_path(str(ROOT / "tools" / "install_detectron2.py"), run_name="__main__")
    assert capsys.readouterr().out == "detectron2 is already installed\n"
