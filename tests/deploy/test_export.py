"""An export answers as its network does, or is not there."""

import collections
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fbnetv3
from fbnetv3.data import Preprocessing
from fbnetv3.deploy import FORMATS, classifier_export, load
from fbnetv3.deploy.classifier_export import relative_difference
from fbnetv3.deploy.formats.export_formats import folded
from fbnetv3.errors import ExportError, MissingPackageError, OutputError, UsageError
from tests.test_docs import ROOT

SMALL = Preprocessing(8, 8, (0.5,), (0.5,))


class Mean(nn.Module):
    """Two classes: the image's mean, and `factor` times it."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        mean = x.mean((1, 2, 3))[:, None]
        return torch.cat([mean, self.factor * mean], 1)


class Fickle(Mean):
    """Another function while it is exported than when it runs."""

    def forward(self, x):
        return super().forward(x) * (2 if torch.compiler.is_compiling() else 1)


@pytest.mark.parametrize("format", FORMATS)
def test_it_answers_as_the_network_does(format, exported, digits, held_out):
    images, targets = held_out
    with torch.no_grad():
        expected = digits.model(torch.stack([digits.preprocessing.transform()(image) for image in images])).numpy()
    found = load(exported(format)).logits(images, batch_size=16)  # 16, 16 and 8
    assert relative_difference(found, expected) < 1e-4
    assert np.mean(found.argmax(1) == targets) > 0.9


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_the_manifest_says_what_is_there(format, exported):
    folder = exported(format)
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert files == set(manifest["files"]) == {FORMATS[format].file, "preprocessing.json", "classes.json"}
    for name, about in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert about == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert manifest["input"]["shape"] == [None, 1, 32, 32] and manifest["output"]["shape"] == [None, 10]
    assert manifest["verification"]["images"] == 32
    assert manifest["verification"]["largest_relative_difference"] <= manifest["verification"]["tolerance"] == 1e-4
    assert manifest["versions"]["torch"] == torch.__version__
    assert json.loads((folder / "classes.json").read_text()) == [str(d) for d in range(10)]
    assert json.loads((folder / "preprocessing.json").read_text())["mean"] == [0.5]


def test_onnx_has_an_operator_for_each_activation_and_no_norm(exported, digits):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported("onnx") / "model.onnx")
    count = collections.Counter(node.op_type for node in model.graph.node)
    of = collections.Counter(type(module).__name__ for module in digits.model.modules())
    assert (count["HardSwish"], count["HardSigmoid"]) == (of["Hardswish"], of["Hardsigmoid"])
    assert count["Conv"] == sum(isinstance(module, nn.Conv2d) for module in digits.model.modules())
    assert not {"BatchNormalization", "Clip", "Div", "Relu"} & set(count)
    assert [size.dim_param for size in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", "", "", ""]
    assert str(ROOT).encode() not in (exported("onnx") / "model.onnx").read_bytes()


def test_executorch_gives_the_whole_network_to_xnnpack(exported):
    folder = exported("executorch")
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary((folder / "model.pte").read_bytes())
    (plan,) = getattr(program, "program", program).execution_plan
    assert [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"] and not plan.operators


def test_onnx_of_any_size(tmp_path):
    torch.manual_seed(0)
    model = fbnetv3.create_model("fbnetv3_a", num_classes=7).eval()
    classes = [f"class {i}" for i in range(7)]
    done = classifier_export(model, Preprocessing(64, 72), classes, tmp_path / "a", any_size=True)
    assert done.manifest.input["shape"] == [None, 3, None, None]
    runtime = load(done.folder).runtime
    for shape in ((1, 3, 64, 64), (3, 3, 96, 80), (2, 3, 65, 131)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert relative_difference(runtime.run(x.numpy()), model(x).numpy()) < 1e-4


def test_folding_leaves_no_norm_and_the_same_function():
    torch.manual_seed(0)
    model = fbnetv3.create_model("fbnetv3_a_cifar", num_classes=10)
    x = torch.randn(8, 3, 32, 32)
    model(x)  # statistics other than 0 and 1
    model.eval().to(memory_format=torch.channels_last)
    for ours in (folded(model), folded(model, plain_gates=True)):
        assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
        assert all(value.is_contiguous() for value in ours.state_dict().values())  # ExecuTorch may fail otherwise
        with torch.no_grad():
            torch.testing.assert_close(ours(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [Fickle(), Mean(float("nan"))], ids=["other answers", "NaN"])
def test_an_export_that_answers_differently_is_not_kept(model, tmp_path):
    with pytest.raises(
        ExportError, match=r"mine: torch .* answers differently from the network, by .* nothing was exp"
    ):
        classifier_export(model, SMALL, ["a", "b"], tmp_path / "out", format="torch-export", name="mine")
    assert not list(tmp_path.glob("*/model*")) and not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_explained(tmp_path):
    class Odd(Mean):
        def forward(self, x):
            return super().forward(x) * (1 if x.sum() > 0 else 2)

    with pytest.raises(ExportError, match="torch.export cannot take this network"):
        classifier_export(Odd(), SMALL, ["a", "b"], tmp_path / "out", format="torch-export")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_export_cut_short_leaves_nothing(end, tmp_path, monkeypatch):
    def write(program, path):
        path.write_bytes(b"half")
        raise end

    monkeypatch.setitem(FORMATS, "torch-export", replace(FORMATS["torch-export"], write=write))
    expected = KeyboardInterrupt if isinstance(end, KeyboardInterrupt) else OutputError
    with pytest.raises(expected):
        classifier_export(Mean(), SMALL, ["a", "b"], tmp_path / "new" / "out", format="torch-export")
    assert not list((tmp_path / "new").iterdir())


def test_a_folder_in_use_stays_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already: choose another folder"):
        classifier_export(Mean(), SMALL, ["a", "b"], tmp_path, format="torch-export")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "out").mkdir()
    classifier_export(Mean(), SMALL, ["a", "b"], tmp_path / "out", format="torch-export")
    assert len(load(tmp_path / "out")(np.zeros((8, 8), np.uint8))) == 2


def test_the_network_is_left_as_it_was(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten())
    model.append(nn.Linear(128, 2)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    classifier_export(model, SMALL, ["a", "b"], tmp_path / "out", format="torch-export")
    assert model.training and model[2].inplace and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": "onxx"}, "unknown format 'onxx': did you mean onnx?"),
        ({"format": "executorch", "any_size": True}, "inputs of one size"),
        ({"classes": []}, "no class names"),
        ({"classes": ["a", "b", "c"]}, r"answers with \(32, 2\) to 32 images, but has 3 class names"),
        ({"images": []}, "no image to compare"),
    ],
)
def test_wrong_arguments(changes, message, tmp_path):
    arguments = {"classes": ["a", "b"], "format": "torch-export", **changes}
    with pytest.raises((UsageError, ExportError), match=message):
        classifier_export(Mean(), SMALL, output=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match="run pip install onnxscript"):
        classifier_export(Mean(), SMALL, ["a", "b"], tmp_path / "out")
