"""Post-training quantisation: smaller, the same answers, and refused where they are not."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fbnetv3
from fbnetv3.arch import get_arch
from fbnetv3.deploy import Int8, Predictor, TorchRuntime, classifier_export, load
from fbnetv3.deploy.formats.int8 import folder_split, leading, quantised
from fbnetv3.errors import DataError, ExportError, MissingPackageError, UsageError

CLASSES = [str(d) for d in range(10)]


@pytest.fixture(scope="module")
def int8(digits, held_out):
    return Int8(digits.labelled("train", 64)[0], *held_out)


@pytest.fixture(scope="module")
def tiny(digits, held_out):
    """A block of each kind, untrained but for BatchNorm's statistics."""
    torch.manual_seed(0)
    stages = get_arch("fbnetv3_digits").stages
    chosen = tuple(replace(stages[i], rows=stages[i].rows[:2]) for i in (0, 1, 3, 6))
    model = fbnetv3.create_model(
        replace(get_arch("fbnetv3_digits"), name="tiny", stages=chosen), num_classes=10, in_chans=1
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.ones_(module.weight)
    images = torch.stack([digits.preprocessing.transform()(image) for image in held_out[0]])
    with torch.no_grad():
        model.train()(images)
    return model.eval()


@pytest.fixture
def export(digits, tmp_path):
    def export(model, int8, format="onnx", name="out"):
        folder = tmp_path / name
        return classifier_export(model, digits.preprocessing, CLASSES, folder, format=format, name="tiny", int8=int8)

    return export


def nearness(found, expected):
    """The mean square of the difference, in parts of the expected logits' variance."""
    return np.mean((found - expected) ** 2) / expected.var()


def test_onnx_of_a_trained_network(digits, int8, export):
    onnx = pytest.importorskip("onnx")
    done = export(digits.model, int8)
    noted = done.manifest.verification["int8"]
    assert noted["top1_int8"] == noted["top1_float32"] > 95 and noted["agreement"] == 100
    assert noted["bytes_int8"] == done.model.stat().st_size < 0.34 * noted["bytes_float32"]
    graph = onnx.load(done.model).graph
    kinds = [x.data_type for x in graph.initializer if len(x.dims) == 4]  # a layer's weights each
    assert set(kinds) == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}
    assert [graph.input[0].name, graph.output[0].name] == ["images", "logits"]


def test_onnx_runtime_computes_all_but_the_first_layers_in_integers(digits, int8, export, tmp_path):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(export(digits.model, int8).model), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    sizes = [module.weight.numel() for module in digits.model.modules() if isinstance(module, nn.Conv2d)]
    assert operators.count("QLinearConv") == len(sizes) - operators.count("Conv")
    assert operators.count("Conv") == leading(sizes, 0.01) >= 4


def test_the_first_layers_hold_at_most_a_share_of_the_weights():
    assert [leading([1, 2, 3, 94], share) for share in (0, 0.01, 0.05, 0.06, 1)] == [0, 1, 2, 3, 4]


def test_executorch_is_one_graph_of_integer_convolutions(tiny, digits, int8, export):
    pytest.importorskip("executorch")
    from executorch.exir._serialize._program import deserialize_pte_binary

    done = export(tiny, replace(int8, targets=None, min_agreement=90), "executorch")
    program = deserialize_pte_binary(done.model.read_bytes())
    (plan,) = getattr(program, "program", program).execution_plan
    assert [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"] and not plan.operators
    noted = done.manifest.verification["int8"]
    assert noted["bytes_int8"] < 0.45 * noted["bytes_float32"] and "top1_int8" not in noted
    whole = Predictor(TorchRuntime(tiny), digits.preprocessing, CLASSES)
    assert nearness(load(done.folder).logits(int8.images), whole.logits(int8.images)) < 0.03


@pytest.mark.parametrize("reduce_range", [False, True])
def test_onnx_is_near_too(reduce_range, tiny, digits, int8, export):
    done = export(tiny, replace(int8, targets=None, min_agreement=90, reduce_range=reduce_range))
    whole = Predictor(TorchRuntime(tiny), digits.preprocessing, CLASSES)
    assert nearness(load(done.folder).logits(int8.images), whole.logits(int8.images)) < 0.03


def test_seven_bits_are_seven_bits(tiny, int8, export):
    onnx = pytest.importorskip("onnx")
    done = export(tiny, replace(int8, targets=None, min_agreement=0, reduce_range=True))
    weights = [onnx.numpy_helper.to_array(x) for x in onnx.load(done.model).graph.initializer if len(x.dims) == 4]
    assert max(np.abs(weight.astype(int)).max() for weight in weights) == 64


def test_ranges_end_where_gates_are_constant():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from fbnetv3.deploy.formats.quantize_onnx import without_saturation

    nodes = [
        ("Conv", "x", "a"),
        ("HardSwish", "a", "b"),
        ("Conv", "b", "c"),
        ("HardSigmoid", "c", "d"),
        ("Conv", "d", "e"),
        ("HardSwish", "e", "f"),
        ("Add", "e", "g"),
        ("Conv", "g", "h"),
        ("HardSwish", "h", "i"),
    ]
    graph = onnx.helper.make_graph([onnx.helper.make_node(op, [x], [y]) for op, x, y in nodes], "graph", [], [])
    found = without_saturation(
        graph,
        {"a": (-9.0, 5.0), "b": (-0.4, 5.0), "c": (-2.0, 9.0), "e": (-9.0, 9.0), "h": (-9.0, -5.0), "i": (-9.0, 9.0)},
    )
    assert found == {
        "a": (-3.0, 5.0),
        "b": (-0.4, 5.0),
        "c": (-2.0, 3.0),
        "e": (-9.0, 9.0),  # the sum needs all of it
        "h": (-5.0, -3.0),
        "i": (-9.0, 9.0),
    }


def test_agreement_and_top1():
    int8 = Int8([0], [0] * 4, [0, 1, 1, 0])
    before, after = np.eye(2)[[0, 1, 0, 1]], np.eye(2)[[0, 1, 1, 0]]
    assert int8.compared(before, after) == {"agreement": 50, "top1_float32": 50, "top1_int8": 100}
    assert replace(int8, targets=None).compared(before, after) == {"agreement": 50}


@pytest.mark.parametrize(
    "changes, agreement, top1_int8, message",
    [
        ({}, 50, 89.0, None),  # a point of top-1 may go, the answers may change
        (
            {},
            99,
            88.9,
            r"tiny: int8 takes top-1 from 90.00 to 88.90 % on 4 images, where 1 points are allowed: nothing",
        ),
        ({"max_drop": 2}, 99, 88.9, None),
        (
            {"min_agreement": 98},
            97,
            90,
            r"int8 chooses the class .* on 97.00 % of 4 images, where 98 % are needed: not",
        ),
        ({"targets": None}, 98, None, None),
        ({"targets": None}, 97.9, None, r"on 97.90 % of 4 images, where 98 % are needed"),
        ({"targets": None, "min_agreement": 90}, 97.9, None, None),
    ],
)
def test_what_is_refused(changes, agreement, top1_int8, message):
    int8 = replace(Int8([0], [0] * 4, [0] * 4), **changes)
    found = {"agreement": agreement} | ({"top1_float32": 90.0, "top1_int8": top1_int8} if top1_int8 else {})
    if message is None:
        int8.refuse(found, "tiny")
    else:
        with pytest.raises(ExportError, match=message):
            int8.refuse(found, "tiny")


def test_what_is_refused_is_not_exported(tiny, int8, export, tmp_path):
    noted = export(tiny, replace(int8, max_drop=100), name="in").manifest.verification["int8"]
    assert (noted["images"], noted["calibration_images"], noted["max_drop"]) == (40, 64, 100)
    with pytest.raises(ExportError, match=r"int8 takes top-1 from .* on 40 images, where -100 points are allowed"):
        export(tiny, replace(int8, max_drop=-100))
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(tiny, int8, export):
    with pytest.raises(UsageError, match="int8 is made for onnx and executorch, not for torch-export"):
        export(tiny, int8, "torch-export")
    with pytest.raises(UsageError, match="reduce_range is made for onnx, not for executorch"):
        export(tiny, replace(int8, reduce_range=True), "executorch")
    with pytest.raises(UsageError, match="0 targets for 40 images"):
        replace(int8, targets=[])
    with pytest.raises(UsageError, match="others to compare on"):
        replace(int8, images=[])


def test_a_damaged_calibration_image_is_named(tiny, int8, export, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    with pytest.raises(DataError, match=r"torn.jpg: damaged image"):
        export(tiny, replace(int8, calibration=[tmp_path / "torn.jpg"]))


def test_a_missing_package_is_named(int8, exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "fbnetv3.deploy.formats.quantize_onnx", None)
    with pytest.raises(MissingPackageError, match="run pip install onnx onnxruntime"):
        quantised(None, exported("onnx"), "onnx", load(exported("onnx")), int8)


def test_a_folder_is_split(tmp_path):
    for i in range(10):
        Image.new("L", (8 + i, 8)).save(tmp_path / f"{i}.png")
    sides = [[image.size[0] - 8 for image in part] for part in folder_split(tmp_path, 3, 100)]
    assert sides == [[0, 3, 6], [1, 2, 4, 5, 7, 8, 9]]
    assert [len(part) for part in folder_split(tmp_path, 3, 2)] == [3, 2]
    assert [len(part) for part in folder_split(tmp_path, 256, 1000)] == [5, 5]
    for i in range(1, 10):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(DataError, match="one image alone: int8 needs some to calibrate on, and others"):
        folder_split(tmp_path, 256, 1000)
