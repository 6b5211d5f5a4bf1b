"""Exported folders whose checksums are right and whose content is not."""

import json
import pickle

import pytest

from fbnetv3.deploy import load
from fbnetv3.errors import ExportError
from fbnetv3.utils.files import file_sha256


@pytest.fixture
def bundle(tmp_path):
    """Files of an exported folder, with right checksums whatever they hold."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    fields = {"resolution": 8, "resize": 8, "mean": [0.5], "std": [0.5], "interpolation": "bilinear"}

    def write(format="onnx", model=b"x", preprocessing=None, classes=("a", "b"), **changes):
        name = {"onnx": "model.onnx", "executorch": "model.pte", "torch-export": "model.pt2"}[format]
        (folder / name).write_bytes(model)
        texts = {"preprocessing.json": preprocessing or fields, "classes.json": list(classes)}
        for file, value in texts.items():
            (folder / file).write_text(value if isinstance(value, str) else json.dumps(value))
        files = {
            path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size}
            for path in (folder / name, *(folder / file for file in texts))
        }
        about = {"network": "x", "format": format, "input": {}, "output": {}, "files": files, "versions": {}}
        about |= {"command": "", "verification": {}, **changes}
        (folder / "manifest.json").write_text(json.dumps(about))
        return folder

    write.fields = fields
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
def test_hostile_manifests(bundle, changes):
    folder = bundle()
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **changes}))
    with pytest.raises(ExportError):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        *({"resolution": value} for value in (0, -1, 10**9, float("inf"), float("nan"), "x", None, [], 1e308)),
        *({"resize": value} for value in (0, 10**12, 4)),
        *({"mean": value} for value in ([], [0.1, 0.2], ["x"], [float("nan")], 3, None)),
        *({"std": value} for value in ([0], [-1], [float("inf")], [])),
        {"interpolation": "magic"},
    ],
)
def test_hostile_preprocessing(bundle, changes):
    with pytest.raises(ExportError, match="preprocessing"):
        load(bundle(preprocessing={**bundle.fields, **changes}))


@pytest.mark.parametrize("text", ["[" * 100_000, "", "{", '{"resolution": 1e9999}', "[]", "3"])
def test_json_that_is_none(bundle, text):
    with pytest.raises(ExportError):
        load(bundle(preprocessing=text))
    folder = bundle()
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ExportError):
        load(folder)


@pytest.mark.parametrize("model", [b"", b"x", bytes(1000), b"PK\x03\x04" + bytes(100), pickle.dumps({})])
@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_models_that_are_none(bundle, format, model):
    with pytest.raises(ExportError, match=r"model\."):
        load(bundle(format, model))


def test_onnx_files_with_weights_elsewhere(bundle, tmp_path):
    """Weights in a file beside the model, or above it, are not followed: a manifest could not vouch for them."""
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
        load(bundle(model=model.SerializeToString()))
