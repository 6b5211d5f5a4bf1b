"""An export gives its network's logits, or is not written."""

import collections
import hashlib
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

import fbnetv3
from fbnetv3.data import Preprocessing
from fbnetv3.deploy import FORMATS, export_classifier, load
from fbnetv3.deploy.formats.export_format import get_format
from fbnetv3.deploy.formats.graph_preparation import prepare_for_export
from fbnetv3.deploy.formats.torch_export_format import TorchExportFormat
from fbnetv3.deploy.predictors.logit_difference import relative_difference
from fbnetv3.errors import ExportError, MissingPackageError, OutputError, UnknownNameError, UsageError
from tests.pages import ROOT

SMALL = Preprocessing(8, 8, (0.5,), (0.5,))


class Mean(nn.Module):
    """Two classes: the image's mean, and `factor` times it."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        mean = x.mean((1, 2, 3))[:, None]
        return torch.cat([mean, self.factor * mean], 1)


class DifferentWhenExported(Mean):
    """A different function while it is traced."""

    def forward(self, x):
        return super().forward(x) * (2 if torch.compiler.is_compiling() else 1)


@pytest.mark.parametrize("format", FORMATS.names())
def test_it_gives_the_logits_of_the_network(format, exported, digits, held_out):
    images, targets = held_out
    with torch.no_grad():
        expected = digits.model(
            torch.stack([digits.preprocessing.transform()(image) for image in images])
        ).numpy()
    logits = load(exported(format)).logits(images, batch_size=16)  # 16, 16 and 8
    assert relative_difference(logits, expected) < 1e-4
    assert np.mean(logits.argmax(1) == targets) > 0.9


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_the_manifest_describes_the_folder(format, exported):
    folder = exported(format)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert (
        files
        == set(manifest["files"])
        == {get_format(format).file_name, "preprocessing.json", "classes.json"}
    )
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert manifest["input"]["shape"] == [None, 1, 32, 32] and manifest["output"]["shape"] == [None, 10]
    assert manifest["verification"]["images"] == 32
    assert (
        manifest["verification"]["largest_relative_difference"]
        <= manifest["verification"]["tolerance"]
        == 1e-4
    )
    assert manifest["versions"]["torch"] == torch.__version__
    assert json.loads((folder / "classes.json").read_text()) == [str(d) for d in range(10)]
    assert json.loads((folder / "preprocessing.json").read_text())["mean"] == [0.5]


def test_onnx_has_one_operator_per_activation_and_no_norm(exported, digits):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported("onnx") / "model.onnx")
    count = collections.Counter(node.op_type for node in model.graph.node)
    modules = collections.Counter(type(module).__name__ for module in digits.model.modules())
    assert (count["HardSwish"], count["HardSigmoid"]) == (modules["Hardswish"], modules["Hardsigmoid"])
    assert count["Conv"] == sum(isinstance(module, nn.Conv2d) for module in digits.model.modules())
    assert not {"BatchNormalization", "Clip", "Div", "Relu"} & set(count)
    assert [size.dim_param for size in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "",
        "",
        "",
    ]
    assert str(ROOT).encode() not in (exported("onnx") / "model.onnx").read_bytes()


def test_executorch_delegates_the_whole_network_to_xnnpack(exported):
    folder = exported("executorch")
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary((folder / "model.pte").read_bytes())
    (plan,) = getattr(program, "program", program).execution_plan
    assert [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"] and not plan.operators


def test_onnx_of_any_size(tmp_path):
    torch.manual_seed(0)
    model = fbnetv3.create_model("fbnetv3_a", num_classes=7).eval()
    classes = [f"class {i}" for i in range(7)]
    done = export_classifier(model, Preprocessing(64, 72), classes, tmp_path / "a", any_size=True)
    assert done.manifest.input["shape"] == [None, 3, None, None]
    runtime = load(done.folder).runtime
    for shape in ((1, 3, 64, 64), (3, 3, 96, 80), (2, 3, 65, 131)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_difference(runtime.run(x.numpy()), model(x).numpy()) < 1e-4


def test_prepared_networks_have_no_norm_and_the_same_outputs():
    torch.manual_seed(0)
    model = fbnetv3.create_model("fbnetv3_a_cifar", num_classes=10)
    x = torch.randn(8, 3, 32, 32)
    model(x)  # statistics other than 0 and 1
    model.eval().to(memory_format=torch.channels_last)
    for prepared in (prepare_for_export(model), prepare_for_export(model, decompose_hard_sigmoid=True)):
        assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
        # ExecuTorch may fail otherwise
        assert all(value.is_contiguous() for value in prepared.state_dict().values())
        with torch.no_grad():
            torch.testing.assert_close(prepared(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model", [DifferentWhenExported(), Mean(float("nan"))], ids=["other logits", "NaN"]
)
def test_an_export_with_other_logits_is_not_kept(model, tmp_path):
    with pytest.raises(
        ExportError, match=r"mine: the logits of torch .* differ from the network's by .* Nothing was exp"
    ):
        export_classifier(model, SMALL, ["a", "b"], tmp_path / "out", format="torch-export", name="mine")
    assert not list(tmp_path.glob("*/model*")) and not (tmp_path / "out").exists()


def test_a_network_that_cannot_be_exported(tmp_path):
    class DataDependent(Mean):
        def forward(self, x):
            return super().forward(x) * (1 if x.sum() > 0 else 2)

    with pytest.raises(ExportError, match="torch.export cannot export this network"):
        export_classifier(DataDependent(), SMALL, ["a", "b"], tmp_path / "out", format="torch-export")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_nothing(error, tmp_path, monkeypatch):
    def write(self, program, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(TorchExportFormat, "write", write)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError
    with pytest.raises(expected):
        export_classifier(Mean(), SMALL, ["a", "b"], tmp_path / "new" / "out", format="torch-export")
    assert not list((tmp_path / "new").iterdir())


def test_a_folder_in_use_is_not_changed(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="already exists: choose a different folder"):
        export_classifier(Mean(), SMALL, ["a", "b"], tmp_path, format="torch-export")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_empty_folder_can_be_used(tmp_path):
    (tmp_path / "out").mkdir()
    export_classifier(Mean(), SMALL, ["a", "b"], tmp_path / "out", format="torch-export")
    assert len(load(tmp_path / "out")(np.zeros((8, 8), np.uint8))) == 2


def test_images_may_be_an_array(tmp_path):
    images = np.zeros((3, 8, 8), np.uint8)
    done = export_classifier(
        Mean(), SMALL, ["a", "b"], tmp_path / "out", format="torch-export", images=images
    )
    assert done.manifest.verification["images"] == 3


def test_an_error_after_the_onnx_export_is_an_export_error(tmp_path, monkeypatch):
    def reject(*_, **__):
        raise ValueError("invalid graph")

    monkeypatch.setattr(pytest.importorskip("onnx").checker, "check_model", reject)
    with pytest.raises(ExportError, match="torch.onnx cannot export this network: invalid graph"):
        export_classifier(Mean(), SMALL, ["a", "b"], tmp_path / "out")


def test_the_network_is_not_changed(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten())
    model.append(nn.Linear(128, 2)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_classifier(model, SMALL, ["a", "b"], tmp_path / "out", format="torch-export")
    assert model.training and model[2].inplace and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "onxx"}, "unknown export format 'onxx': did you mean onnx?"),
        (
            {"format": "executorch", "any_size": True},
            "any_size is available for .*onnx.*, not for executorch",
        ),
        ({"images": []}, "images is empty: pass images to compare the export on"),
        ({"classes": ["a", "b", "c"]}, r"shape \(32, 2\) for 32 images, but has 3 class names"),
    ],
)
def test_wrong_arguments(changes, message, tmp_path):
    arguments = {"classes": ["a", "b"], "format": "torch-export", **changes}
    with pytest.raises((UsageError, UnknownNameError, ExportError), match=message):
        export_classifier(Mean(), SMALL, output=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match="run pip install onnxscript"):
        export_classifier(Mean(), SMALL, ["a", "b"], tmp_path / "out")
