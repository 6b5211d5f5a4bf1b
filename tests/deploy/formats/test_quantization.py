"""Post-training quantization: smaller files, the same classes, and no export if too much accuracy is lost."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from fbnetv3.deploy import ClassifierPredictor, PrecisionSettings, TorchRuntime, export_classifier, load
from fbnetv3.deploy.formats.quantization import split_image_folder
from fbnetv3.errors import DataError, ExportError, UsageError

CLASSES = [str(d) for d in range(10)]
SAME_CLASS = "chooses the same class as float32 for {}% of 4 images; 98% are required"


@pytest.fixture(scope="module")
def int8(digits, held_out):
    return PrecisionSettings("int8", *held_out, calibration=digits.labeled_images("train", 64)[0])


@pytest.fixture
def export(digits, tmp_path):
    def export(model, int8, format="onnx", name="out", **options):
        options |= {"format": format, "name": "tiny", "precision": int8}
        return export_classifier(model, digits.preprocessing, CLASSES, tmp_path / name, **options)

    return export


def relative_error(logits, expected):
    """Return the mean squared error relative to the variance of the expected logits."""
    return np.mean((logits - expected) ** 2) / expected.var()


def test_onnx_of_a_trained_network(digits, int8, export):
    onnx = pytest.importorskip("onnx")
    done = export(digits.model, int8)
    result = done.manifest.verification["int8"]
    assert result["top1_int8"] == result["top1_float32"] > 95 and result["agreement"] == 100
    assert result["bytes_int8"] == done.model.stat().st_size < 0.34 * result["bytes_float32"]
    graph = onnx.load(done.model).graph
    kinds = [x.data_type for x in graph.initializer if len(x.dims) == 4]  # a layer's weights each
    assert set(kinds) == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}
    assert [graph.input[0].name, graph.output[0].name] == ["images", "logits"]


def test_onnx_runtime_computes_all_layers_but_the_float_ones_in_integers(digits, int8, export, tmp_path):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    done = export(digits.model, int8)
    ort.InferenceSession(str(done.model), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    sizes = [module.weight.numel() for module in digits.model.modules() if isinstance(module, nn.Conv2d)]
    assert operators.count("QLinearConv") == len(sizes) - operators.count("Conv")
    modules = dict(digits.model.named_modules())
    float_layers = done.manifest.verification["int8"]["float_layers"]
    assert operators.count("Conv") == len(float_layers) >= 4
    # Together they have at most 1% of the weights
    assert sum(modules[name].weight.numel() for name in float_layers) <= 0.01 * sum(sizes)


def test_executorch_is_one_graph_of_integer_convolutions(tiny, digits, int8, export):
    pytest.importorskip("executorch")
    from executorch.exir._serialize._program import deserialize_pte_binary

    done = export(tiny, replace(int8, targets=None, min_agreement=90), "executorch")
    program = deserialize_pte_binary(done.model.read_bytes())
    (plan,) = getattr(program, "program", program).execution_plan
    assert [delegate.id for delegate in plan.delegates] == ["XnnpackBackend"] and not plan.operators
    result = done.manifest.verification["int8"]
    assert result["bytes_int8"] < 0.45 * result["bytes_float32"] and "top1_int8" not in result
    original = ClassifierPredictor(TorchRuntime(tiny), digits.preprocessing, CLASSES)
    assert relative_error(load(done.folder).logits(int8.images), original.logits(int8.images)) < 0.03


@pytest.mark.parametrize("reduce_range", [False, True])
def test_onnx_logits_are_close(reduce_range, tiny, digits, int8, export):
    done = export(tiny, replace(int8, targets=None, min_agreement=90, reduce_range=reduce_range))
    original = ClassifierPredictor(TorchRuntime(tiny), digits.preprocessing, CLASSES)
    assert relative_error(load(done.folder).logits(int8.images), original.logits(int8.images)) < 0.03


def test_reduce_range_gives_7_bit_weights(tiny, int8, export):
    onnx = pytest.importorskip("onnx")
    done = export(tiny, replace(int8, targets=None, min_agreement=0, reduce_range=True))
    weights = [
        onnx.numpy_helper.to_array(x) for x in onnx.load(done.model).graph.initializer if len(x.dims) == 4
    ]
    assert max(np.abs(weight.astype(int)).max() for weight in weights) == 64


def test_ranges_are_clamped_to_where_activations_are_not_constant():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from fbnetv3.deploy.formats.onnx_quantization import clamp_saturated_ranges

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
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, [x], [y]) for op, x, y in nodes], "graph", [], []
    )
    ranges = clamp_saturated_ranges(
        graph,
        {
            "a": (-9.0, 5.0),
            "b": (-0.4, 5.0),
            "c": (-2.0, 9.0),
            "e": (-9.0, 9.0),
            "h": (-9.0, -5.0),
            "i": (-9.0, 9.0),
        },
    )
    assert ranges == {
        "a": (-3.0, 5.0),
        "b": (-0.4, 5.0),
        "c": (-2.0, 3.0),
        "e": (-9.0, 9.0),  # the sum needs all of it
        "h": (-5.0, -3.0),
        "i": (-9.0, 9.0),
    }


@pytest.mark.parametrize(
    "calibration, images, targets, message",
    [
        ([], [0], None, "needs images to calibrate on"),
        ([0], [], None, "needs images to compare on"),
        ([0], [0, 0], [1], "the targets of all of them or of none"),
    ],
)
def test_missing_images(calibration, images, targets, message):
    with pytest.raises(UsageError, match=message):
        PrecisionSettings("int8", images, targets, calibration=calibration)


def test_agreement_and_top1():
    int8 = PrecisionSettings("int8", [0] * 4, [0, 1, 1, 0], calibration=[0])
    before, after = np.eye(2)[[0, 1, 0, 1]], np.eye(2)[[0, 1, 1, 0]]
    assert int8.compare(before, after) == {"agreement": 50, "top1_float32": 50, "top1_int8": 100}
    assert replace(int8, targets=None).compare(before, after) == {"agreement": 50}


def test_images_with_several_labels_agree_if_all_labels_do():
    """Three images with the labels {0}, {0, 1} and {}; the second loses a label that is not its best."""
    int8 = PrecisionSettings("int8", [0] * 3, calibration=[0])
    before = np.array([[2.0, -1.0], [2.0, 0.1], [-1.0, -3.0]])
    after = np.array([[0.1, -2.0], [2.0, -0.1], [-3.0, -1.0]])
    comparison = int8.compare(before, after, multi_label=True)
    assert comparison == {"agreement": pytest.approx(200 / 3)}
    violation = int8.describe_violation(comparison, multi_label=True)
    assert violation == "chooses the same labels as float32 for 66.67% of 3 images; 98% are required"


@pytest.mark.parametrize(
    "changes, agreement, top1_int8, message",
    [
        ({}, 50, 89.0, ""),  # one point of top-1 may be lost, classes may change
        (
            {},
            99,
            88.9,
            "reduces top-1 from 90.00 to 88.90% on 4 images; the limit is a loss of 1 points (max_drop)",
        ),
        ({"max_drop": 2}, 99, 88.9, ""),
        ({"min_agreement": 98}, 97, 90, SAME_CLASS.format("97.00")),
        ({"targets": None}, 98, None, ""),
        ({"targets": None}, 97.9, None, SAME_CLASS.format("97.90")),
        ({"targets": None, "min_agreement": 90}, 97.9, None, ""),
    ],
)
def test_lost_accuracy(changes, agreement, top1_int8, message):
    int8 = replace(PrecisionSettings("int8", [0] * 4, [0] * 4, calibration=[0]), **changes)
    comparison = {"agreement": agreement} | (
        {"top1_float32": 90.0, "top1_int8": top1_int8} if top1_int8 else {}
    )
    assert int8.describe_violation(comparison) == message


def test_a_network_of_several_labels_is_compared_by_its_labels(tiny, digits, int8, export):
    done = export(tiny, replace(int8, targets=None, min_agreement=0), multi_label=True)
    original = ClassifierPredictor(TorchRuntime(tiny), digits.preprocessing, CLASSES, multi_label=True)
    labels = [
        [{p.label for p in predictions} for predictions in predictor(int8.images)]
        for predictor in (original, load(done.folder))
    ]
    assert max(map(len, labels[0])) > 1
    equal = [first == second for first, second in zip(*labels, strict=True)]
    assert done.manifest.verification["int8"]["agreement"] == pytest.approx(100 * np.mean(equal))


def test_an_inaccurate_network_is_not_exported(tiny, int8, export, tmp_path):
    result = export(tiny, replace(int8, max_drop=100), name="in").manifest.verification["int8"]
    assert (result["images"], result["calibration_images"], result["max_drop"]) == (40, 64, 100)
    with pytest.raises(
        ExportError,
        match=r"tiny: int8 reduces top-1 .*; the limit is a loss of -100 points .max_drop.. Nothing was",
    ):
        export(tiny, replace(int8, max_drop=-100))
    assert not (tmp_path / "out").exists()


def test_wrong_arguments(tiny, int8, export):
    with pytest.raises(UsageError, match="int8 is available for .*onnx.*, not for torch-export"):
        export(tiny, int8, "torch-export")
    with pytest.raises(UsageError, match="reduce_range is available for .*onnx.*, not for executorch"):
        export(tiny, replace(int8, reduce_range=True), "executorch")
    for changes in ({"targets": []}, {"images": []}):
        with pytest.raises(UsageError, match="int8 needs images to compare on, and the targets of all"):
            replace(int8, **changes)


def test_corrupt_images_are_skipped_and_counted(tiny, int8, export, tmp_path, caplog):
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(b"\xff\xd8\xff\xe0 torn")
    settings = replace(
        int8,
        calibration=[torn, *int8.calibration[:9]],
        images=[*int8.images, torn],
        targets=[*int8.targets, 3],
        max_drop=100,
    )
    result = export(tiny, settings).manifest.verification["int8"]
    assert (result["corrupt_images"], result["calibration_images"], result["images"]) == (2, 9, 40)
    assert "2 corrupt images are skipped: " in caplog.text and "torn.jpg: corrupt image" in caplog.text


def test_too_many_corrupt_images_are_an_error(tiny, int8, export, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    with pytest.raises(DataError, match=r"only 0 of 1 images to calibrate on .*torn.jpg: corrupt image"):
        export(tiny, replace(int8, calibration=[tmp_path / "torn.jpg"]))


def test_more_layers_stay_float_until_a_limit_is_met(digits, tiny, int8, export, monkeypatch):
    shares = []

    def describe_violation(settings, comparison, multi_label):
        shares.append(comparison)
        return "is too coarse" if len(shares) < 3 else ""

    monkeypatch.setattr(PrecisionSettings, "describe_violation", describe_violation)
    result = export(tiny, int8).manifest.verification["int8"]
    modules = dict(tiny.named_modules())
    sizes = [module.weight.numel() for module in modules.values() if isinstance(module, nn.Conv2d)]
    float_weights = sum(modules[name].weight.numel() for name in result["float_layers"])
    assert len(shares) == 3 and 0.01 * sum(sizes) < float_weights <= 0.16 * sum(sizes)


def test_float_layers_by_number_and_name(tiny, int8, export):
    settings = replace(int8, max_drop=100)
    two = export(tiny, replace(settings, float_layers=2), name="two").manifest.verification["int8"]
    assert len(two["float_layers"]) == 2
    names = ["head", "backbone.stages.0.0.0"]
    done = export(tiny, replace(settings, float_layers=names), name="named")
    assert done.manifest.verification["int8"]["float_layers"] == names
    onnx = pytest.importorskip("onnx")
    weights = [x for x in onnx.load(done.model).graph.initializer if len(x.dims) == 4]
    kinds = [weight.data_type for weight in weights]
    assert kinds.count(onnx.TensorProto.FLOAT) == 2
    with pytest.raises(UsageError, match=r"float_layers: no such layers: tail; there are backbone"):
        export(tiny, replace(settings, float_layers=["tail"]))
    with pytest.raises(UsageError, match="'all' must be auto, a number of layers or a list"):
        replace(settings, float_layers="all")


def test_a_folder_is_split(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.png").touch()
    names = ["".join(path.stem for path in part) for part in split_image_folder(tmp_path, 3, 100)]
    assert names == ["036", "1245789"]
    assert [len(part) for part in split_image_folder(tmp_path, 3, 2)] == [3, 2]
    assert [len(part) for part in split_image_folder(tmp_path, 256, 1000)] == [5, 5]
    for i in range(1, 10):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(DataError, match="only one image; int8 needs images to calibrate on and others"):
        split_image_folder(tmp_path, 256, 1000)
