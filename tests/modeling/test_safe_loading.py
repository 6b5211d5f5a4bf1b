"""Checkpoint files: what is read, and files that are corrupt or would run code."""

import pickle
import zipfile

import pytest
import torch

import fbnetv3
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.safe_loading import extract_state_dict, load_checkpoint_file
from tests.modeling.weight_files import RunsCode

SMALL = "fbnetv3_digits"


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    model = fbnetv3.create_model(SMALL)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    state_dict = load_checkpoint_file(tmp_path / "x.safetensors")
    assert all(torch.equal(state_dict[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "checkpoint", [{}, [], 3, {"state_dict": {}}, {"state_dict": 3}, {"a": 1}, {"model": {"a": "b"}}]
)
def test_a_checkpoint_without_tensors(checkpoint):
    with pytest.raises(WeightsError, match="x.pth: has no state dict"):
        extract_state_dict(checkpoint, "x.pth")


def test_nested_ema_weights_without_prefixes():
    raw = {"a": torch.zeros(1)}
    ema = {"module.a": torch.ones(1)}
    assert extract_state_dict({"model_ema": {"state_dict": ema}, "state_dict": raw}, "x.pth") == {
        "a": torch.ones(1)
    }
    assert extract_state_dict({"model_ema": {}, "state_dict": raw}, "x.pth") == raw


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    torch.save({"state_dict": RunsCode(tmp_path / "trace")}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="objects other than tensors, which could run code; save only"):
        load_checkpoint_file(tmp_path / "x.pth")
    assert not (tmp_path / "trace").exists()


def test_a_plain_pickle_that_runs_code_is_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps(RunsCode(tmp_path / "trace"), protocol=2))
    with pytest.raises(WeightsError):
        load_checkpoint_file(tmp_path / "x.pth")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is corrupt or not a checkpoint"),
        (bytes(100), "is corrupt or not a checkpoint"),
        (b"hello", "is corrupt or not a checkpoint"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page, not weights"),
        (b"\n  <html><body>", "is a web page, not weights"),
        (b"PK\x03\x04 nonsense", "is corrupt or not a checkpoint"),
    ],
    ids=["empty", "zeros", "text", "page", "page_with_space", "zip"],
)
def test_files_that_are_not_checkpoints(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_checkpoint_file(tmp_path / "x.pth")


def test_a_compressed_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(1000))
    with pytest.raises(WeightsError, match=r"x.pth: is compressed, .*: save it again with torch.save$"):
        load_checkpoint_file(tmp_path / "x.pth")


def test_a_truncated_checkpoint(tmp_path):
    torch.save(fbnetv3.create_model(SMALL).state_dict(), tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match="x.pth: is corrupt"):
        load_checkpoint_file(tmp_path / "x.pth")


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        load_checkpoint_file(tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="cannot be read: Is a directory"):
        load_checkpoint_file(tmp_path)
