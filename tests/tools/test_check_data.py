"""tools/check_data.py: its exit code, page and data, for paths, configs and datasets by name."""

import json

import pytest


@pytest.fixture
def check(tool, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: tool("check_data", *arguments, "--workers", "1")


def test_a_folder(check, folder, tmp_path):
    ran = check(folder, "--json", "check.json")
    assert (ran.code, ran.err) == (0, "")
    assert "40 x 36" in ran.out and "page:        data_check.html" in ran.out
    assert "ready for training" in (tmp_path / "data_check.html").read_text()
    assert json.loads((tmp_path / "check.json").read_text())["splits"]["train"]["images"] == 24


def test_a_dataset_that_would_stop_training(check, folder, tmp_path):
    (folder / "val" / "dark" / "0.jpg").write_bytes(b"corrupt")
    ran = check(folder, "--html", "")
    assert ran.code == 1
    assert ran.err == f"error: {folder}: 1 problem to solve before training\n"
    assert "dark/0.jpg" in ran.out and not (tmp_path / "data_check.html").exists()


def test_the_dataset_of_a_config_and_by_name(check, config, tmp_path):
    assert "dark" in check("--config", config).out
    assert "8 x 8" in check("--config", config, "DATA.NAME", "digits").out
    assert "8 x 8" in check("DATA.NAME", "digits").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a PATH, a --config FILE, or DATA.NAME and DATA.ROOT"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["DATA.NAME", "digit"], "unknown dataset 'digit': did you mean digits?"),
        (["DATA.NAME", "digits", "SOLVER.LR", "1"], "SOLVER.LR: unknown key"),
        (["DATA.NAME", "imagefolder"], "DATA.ROOT is not set"),
    ],
)
def test_errors_are_one_line(check, arguments, message):
    ran = check(*arguments)
    assert ran.code in (1, 2) and message in ran.err and ran.err.count("\n") == 1
