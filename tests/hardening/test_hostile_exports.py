"""Exported folders with correct checksums and invalid content are refused."""

import json
import pickle

import pytest

from fbnetv3.deploy import load
from fbnetv3.errors import ExportError
from fbnetv3.utils.files import file_sha256


@pytest.fixture
def write_folder(tmp_path):
    """Return a function that writes an exported folder with correct checksums and any content."""
    folder = tmp_path / "exported"
    folder.mkdir()
    default_preprocessing = {
        "resolution": 8,
        "resize": 8,
        "mean": [0.5],
        "std": [0.5],
        "interpolation": "bilinear",
    }

    def write(format="onnx", model=b"x", preprocessing=None, classes=("a", "b"), **changes):
        name = {"onnx": "model.onnx", "executorch": "model.pte", "torch-export": "model.pt2"}[format]
        (folder / name).write_bytes(model)
        texts = {
            "preprocessing.json": preprocessing or default_preprocessing,
            "classes.json": list(classes),
        }
        for file, value in texts.items():
            (folder / file).write_text(value if isinstance(value, str) else json.dumps(value))
        files = {
            path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size}
            for path in (folder / name, *(folder / file for file in texts))
        }
        manifest = {
            "network": "x",
            "format": format,
            "input": {},
            "output": {},
            "files": files,
            "versions": {},
        }
        manifest |= {"command": "", "verification": {}, **changes}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    write.preprocessing = default_preprocessing
    return write


@pytest.mark.parametrize(
    "changes",
    [
        {"files": {"../../etc/passwd": {"sha256": "0", "bytes": 1}}},
        {"files": {"/etc/passwd": {"sha256": "0", "bytes": 1}}},
        {"files": []},
        {"files": {"model.onnx": 3}},
        {"format": ["onnx"]},
        {"task": ["classification"]},
        {"task": "else"},
        {"layout": "x"},
        {"layout": 99},
        {"more": 1},
    ],
)
def test_invalid_manifests_are_refused(write_folder, changes):
    folder = write_folder()
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))
    with pytest.raises(ExportError):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"resolution": value}
            for value in (0, -1, 10**9, float("inf"), float("nan"), "x", None, [], 1e308)
        ),
        *({"resize": value} for value in (0, 10**12, 4)),
        *({"mean": value} for value in ([], [0.1, 0.2], ["x"], [float("nan")], 3, None)),
        *({"std": value} for value in ([0], [-1], [float("inf")], [])),
        {"interpolation": "magic"},
    ],
)
def test_invalid_preprocessing_is_refused(write_folder, changes):
    with pytest.raises(ExportError, match="preprocessing"):
        load(write_folder(preprocessing={**write_folder.preprocessing, **changes}))


@pytest.mark.parametrize("text", ["[" * 100_000, "", "{", '{"resolution": 1e9999}', "[]", "3"])
def test_invalid_json_is_refused(write_folder, text):
    with pytest.raises(ExportError):
        load(write_folder(preprocessing=text))
    folder = write_folder()
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ExportError):
        load(folder)


@pytest.mark.parametrize("model", [b"", b"x", bytes(1000), b"PK\x03\x04" + bytes(100), pickle.dumps({})])
@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_files_that_are_no_models_are_refused(write_folder, format, model):
    with pytest.raises(ExportError, match=r"model\."):
        load(write_folder(format, model))


def test_onnx_models_with_external_weights_are_refused(write_folder, tmp_path):
    """The manifest has no checksum of other files."""
    onnx = pytest.importorskip("onnx")
    (tmp_path / "secret").write_bytes(bytes(16))
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=1)
    tensor.external_data.add(key="location", value="../secret")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["images", "w"], ["logits"])],
        "g",
        [onnx.helper.make_tensor_value_info("images", 1, [4])],
        [onnx.helper.make_tensor_value_info("logits", 1, [4])],
        [tensor],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(ExportError, match=r"model\.onnx"):
        load(write_folder(model=model.SerializeToString()))
