"""`fbnetv3 eval`: a zoo entry, a checkpoint, a run or a config, on its own data or on others."""

import json
import shutil

import pytest

from fbnetv3.arch import configs_folder
from tests.tools.test_checkpoint_is_enough import make_data, metrics, trained  # noqa: F401 - a fixture


def test_an_entry_of_the_zoo(fbnetv3):
    ran = fbnetv3("eval", "digits/fbnetv3_digits")
    assert ran.code == 0 and ran.out.splitlines()[-1].startswith("top1 99.72%")


@pytest.mark.parametrize("kind", ["folder", "checkpoint", "config"])
def test_a_run_on_data_that_have_moved(fbnetv3, trained, tmp_path, kind):  # noqa: F811
    run = shutil.copytree(trained, tmp_path / "run")
    model = {"folder": run, "checkpoint": run / "model_final.pth", "config": run / "config.yaml"}[kind]
    ran = fbnetv3("eval", model, "--data", make_data(tmp_path / "data"))
    assert ran.code == 0 and f"top1 {metrics(run)['val_top1']:.2f}%" in ran.out


@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
def test_data_that_have_moved_without_a_word_where(fbnetv3, trained, kind):  # noqa: F811
    ran = fbnetv3("eval", {"folder": trained, "checkpoint": trained / "model_final.pth"}[kind])
    assert ran.code == 1 and "no such folder" in ran.err and ran.err.count("\n") == 1
    assert "if the dataset has moved, pass DATA.ROOT PATH (fbnetv3 eval: --data PATH)" in ran.err
    given = fbnetv3("eval", trained / "model_final.pth", "DATA.ROOT", "nowhere")
    assert given.code == 1 and "nowhere" in given.err and "has moved" not in given.err


def test_the_report_goes_where_it_is_wanted(fbnetv3, trained, tmp_path):  # noqa: F811
    arguments = ["--data", make_data(tmp_path / "data"), "--report", tmp_path / "report"]
    ran = fbnetv3("eval", trained / "model_final.pth", *arguments)
    assert ran.code == 0
    assert json.loads((tmp_path / "report/summary.json").read_text())["accuracy"] > 0.8


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["digits/fbnetv3_digit"], 2, "did you mean digits/fbnetv3_digits.yaml"),
        (["digits/fbnetv3_digits", "--data", "nowhere"], 1, "nowhere: no such file or folder"),
        (
            ["nothing"],
            2,
            "nothing: no such run, checkpoint or config, and no weights for 'nothing' in the model zoo",
        ),
        (["."], 2, ".: is not the folder of a run, which has a config.yaml: pass one, or a checkpoint"),
        (["digits/fbnetv3_digits", "--data", "."], 2, ".: has no folder val/ or test/"),
    ],
)
def test_wrong_calls(fbnetv3, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    ran = fbnetv3("eval", *arguments)
    assert ran.code == code and message in ran.err and ran.err.count("\n") == 1


@pytest.mark.parametrize(
    "model, key",
    [("digits/fbnetv3_digits", "DEVICE"), ("coco/faster_rcnn_fbnetv3_digits_C4.yaml", "MODEL.DEVICE")],
)
def test_a_device(fbnetv3, monkeypatch, model, key):
    """It overrides the config's, for both kinds of networks."""
    calls = []
    monkeypatch.setattr("fbnetv3.commands.train.main", calls.append)
    source = model if key == "DEVICE" else configs_folder() / model
    assert fbnetv3("eval", source, "--device", "cpu", "SEED", "1").code == 0
    assert calls[0][-4:] == [key, "cpu", "SEED", "1"]
    ran = fbnetv3("eval", source, "--device", "cuda:77")
    assert ran.code == 2 and ran.err.startswith("error: device 'cuda:77' cannot be used here (")
    assert len(calls) == 1
