"""Checkpoint files: what is read, and files that are corrupt or would run code."""

import argparse
import datetime
import pickle
import sys
import types
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch

import fbnetv3
from fbnetv3.errors import MissingPackageError, WeightsError
from fbnetv3.modeling.safe_loading import load_checkpoint_file
from tests.modeling.weight_files import RunsCode

SMALL = "fbnetv3_digits"


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    model = fbnetv3.create_model(SMALL)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    state_dict = load_checkpoint_file(tmp_path / "x.safetensors")
    assert all(torch.equal(state_dict[key], value) for key, value in model.state_dict().items())


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    torch.save({"state_dict": RunsCode(tmp_path / "trace")}, tmp_path / "x.pth")
    with pytest.raises(
        WeightsError, match=r"other than tensors \(io.open\), which could run code; save only"
    ):
        load_checkpoint_file(tmp_path / "x.pth")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        argparse.Namespace(lr=0.1, root=PurePosixPath("/data")),
        types.SimpleNamespace(lr=0.1),
        PurePosixPath("/data"),
        PureWindowsPath("C:/data"),
        datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
        datetime.timedelta(hours=3),
        np.float16(0.5),
        np.uint8(3),
        np.str_("best"),
        np.bool_(True),
        torch.__version__,
        torch.device("cuda"),
    ],
    ids=repr,
)
def test_plain_values_of_training_scripts_are_read(tmp_path, value, legacy):
    torch.save(
        {"x": value, "a": torch.ones(1)}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy
    )
    assert load_checkpoint_file(tmp_path / "x.pth")["x"] == value


@pytest.mark.parametrize(
    "path", [Path("/data"), PurePosixPath("/data")], ids=lambda path: type(path).__name__
)
def test_paths_of_any_system_become_text(tmp_path, path):
    """A PosixPath cannot be built on Windows, and a WindowsPath not elsewhere."""
    torch.save({"x": path}, tmp_path / "x.pth")
    assert load_checkpoint_file(tmp_path / "x.pth")["x"] == PurePosixPath("/data")


def test_lightnings_hyperparameters_are_read_without_lightning(tmp_path, monkeypatch):
    """Their class is a dict with attributes."""
    names = "lightning", "lightning.fabric", "lightning.fabric.utilities", "lightning.fabric.utilities.data"
    modules = {name: types.ModuleType(name) for name in names}
    attribute_dict = type("AttributeDict", (dict,), {"__module__": names[-1]})
    modules[names[-1]].AttributeDict = attribute_dict
    with monkeypatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        torch.save({"hyper_parameters": attribute_dict(lr=0.1)}, tmp_path / "x.ckpt")
    hyperparameters = load_checkpoint_file(tmp_path / "x.ckpt")["hyper_parameters"]
    assert type(hyperparameters) is dict and hyperparameters == {"lr": 0.1}


def test_a_pickled_network_says_how_to_convert_it(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "x.pth")
    message = r"\(torch.nn.modules.linear.Linear\), which could run code; .* weights_only=False"
    with pytest.raises(WeightsError, match=message):
        load_checkpoint_file(tmp_path / "x.pth")


def test_a_program_is_not_weights(tmp_path):
    torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)).save(str(tmp_path / "x.pt"))
    with pytest.raises(WeightsError, match="x.pt: is a TorchScript program, not weights: save"):
        load_checkpoint_file(tmp_path / "x.pt")


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(
        MissingPackageError, match="x.safetensors needs safetensors: pip install safetensors"
    ):
        load_checkpoint_file(tmp_path / "x.safetensors")


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
