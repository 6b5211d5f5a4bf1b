"""Loading an exported folder: missing and corrupt files, and missing runtimes, are named."""

import json
import shutil
import sys

import pytest

from fbnetv3.deploy import load
from fbnetv3.errors import ExportError, MissingPackageError

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
