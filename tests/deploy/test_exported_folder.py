"""Loading an exported folder: missing and corrupt files, and missing runtimes, are named."""

import json
import shutil
import sys

import pytest

from fbnetv3.deploy import load
from fbnetv3.errors import ExportError, MissingPackageError
from fbnetv3.utils.files import file_sha256

DATA_FILES = ("preprocessing.json", "classes.json")


@pytest.fixture
def folder(exported, tmp_path):
    """A copy to corrupt."""
    return shutil.copytree(exported("torch-export"), tmp_path / "digits")


@pytest.mark.parametrize("name", ["model.pt2", "preprocessing.json", "classes.json"])
def test_a_corrupt_or_missing_file_is_named(name, folder):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"{name}: corrupt .*SHA-256 differs from manifest.json"):
        load(folder)
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(ExportError, match=f"{name}: corrupt"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(ExportError, match=f"{name}: cannot be read .No such file"):
        load(folder)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "manifest.json: corrupt .Expecting property name"),
        ("[]", "manifest.json: corrupt"),
        ("{}", "manifest.json: corrupt .*missing 8 required .* 'network', 'format'"),
        (None, r"is not an exported folder \(no manifest.json\)"),
    ],
)
def test_a_corrupt_manifest(text, message, folder):
    (folder / "manifest.json").unlink()
    if text is not None:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(ExportError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layout": 5}, "newer version of fbnetv3: update"),
        ({"format": "onxx"}, r"unknown export format 'onxx': did you mean onnx\?; or import .*--import"),
        ({"task": "segmentation"}, "unknown task 'segmentation'"),
        ({"files": {}}, "corrupt .lists the files none"),
        *(
            ({"files": {key: {} for key in ("model.pt2", *DATA_FILES, name)}}, "corrupt .lists the files")
            for name in ("../a", "/a", "b/../../a", "C:a", "..\\a")
        ),
    ],
)
def test_a_changed_manifest(changes, message, folder):
    fields = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(fields | changes))
    with pytest.raises(ExportError, match=message):
        load(folder)


def test_no_folder(tmp_path):
    with pytest.raises(ExportError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")


def test_a_missing_runtime_is_named(exported, monkeypatch):
    folder = exported("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match="run pip install onnxruntime"):
        load(folder)


@pytest.fixture
def other_export(tmp_path):
    """A network with three classes for gray images of 16 pixels, as ONNX."""
    from torch import nn

    from fbnetv3.data import Preprocessing
    from fbnetv3.deploy import export_classifier

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    preprocessing = Preprocessing(16, 16, (0.5,), (0.5,))
    return export_classifier(model, preprocessing, ["a", "b", "c"], tmp_path / "other").folder


def mix(exported, other, tmp_path, *names, checksums=False):
    """Return a copy of an export with some files of another one, with checksums that fit."""
    folder = shutil.copytree(exported("onnx"), tmp_path / "mixed")
    for name in names:
        shutil.copy(other / name, folder / name)
    if checksums:
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"] = {
            name: {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
            for name in manifest["files"]
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", ["model.onnx", "preprocessing.json", "classes.json"])
def test_a_file_of_another_export(name, exported, other_export, tmp_path):
    with pytest.raises(ExportError, match=f"{name}: corrupt .*as in a file of another export") as error:
        load(mix(exported, other_export, tmp_path, name))
    assert "\n" not in str(error.value)


def test_the_manifest_of_another_export(exported, other_export, tmp_path):
    with pytest.raises(ExportError, match=r"differs from manifest.json, as in a file of another export"):
        load(mix(exported, other_export, tmp_path, "manifest.json"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.onnx"], r"its input images has the shape \[None, 1, 16, 16\], in manifest.json \[None, 1, 32, 32\]"),
        (["classes.json"], r"manifest.json has the shape \[None, 10\], classes.json \[1, 3\]"),
        (["preprocessing.json"], r"has the shape \[None, 1, 32, 32\], preprocessing.json \[1, 1, 16, 16\]"),
        (["model.onnx", "preprocessing.json", "classes.json"], "has the shape"),
        (["manifest.json"], "has the shape"),
    ],
)  # fmt: skip
def test_files_of_another_export_with_valid_checksums(names, message, exported, other_export, tmp_path):
    with pytest.raises(ExportError, match=f"model.onnx: is not the model that .*{message}") as error:
        load(mix(exported, other_export, tmp_path, *names, checksums=True))
    assert "\n" not in str(error.value)


def test_a_model_of_another_format_is_tried(exported, tmp_path):
    """Runtimes that do not say what they take run an image."""
    folder = shutil.copytree(exported("torch-export"), tmp_path / "mixed")
    (folder / "classes.json").write_text('["a", "b"]')
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"sha256": file_sha256(folder / "classes.json"), "bytes": 10}
    manifest |= {"files": {**manifest["files"], "classes.json": entry}, "output": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match=r"model.pt2: .* logits of shape \[1, 10\] for 2 class names"):
        load(folder)
