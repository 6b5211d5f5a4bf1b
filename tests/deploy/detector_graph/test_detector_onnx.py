"""An exported detector gives detectron2's detections, in images of any size, or is not written."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2", reason="detectron2 is optional: python tools/install_detectron2.py")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is optional: pip install '.[export]'")

from detectron2.modeling import build_model

from fbnetv3 import deploy
from fbnetv3.arch import compound_scale, get_arch, save_arch
from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton
from fbnetv3.data.digit_scenes import write_digit_scenes
from fbnetv3.deploy.detector_graph import box_ops
from fbnetv3.deploy.detector_graph.detection_agreement import compare_detections
from fbnetv3.deploy.detector_graph.detector_onnx import export_detector_to_onnx
from fbnetv3.deploy.input_images import sample_detector_images
from fbnetv3.deploy.predictors.detector_predictor import (
    DETECTOR_OUTPUTS,
    HEATMAPS,
    MASKS,
    DetectionArrays,
    ShortSideResize,
)
from fbnetv3.deploy.predictors.instance_maps import encode_mask_runs
from fbnetv3.detection.data.dataset_mapper import inference_resize
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.export.detector_export import detect_boxes, export_detector
from fbnetv3.detection.export.exportable_detector import make_exportable
from fbnetv3.detection.inference.array_predictors import ConfigPredictor
from fbnetv3.errors import ExportError, MissingPackageError, OutputError, UsageError
from tests.detection.detectors import calibrated_detector, image, small_config, write_digits_config

# The trunk of the feature pyramids has a single block of each width; that of the C4 detector is a published one.
SHALLOW = compound_scale(get_arch("fbnetv3_a0"), depth=0.01, name="shallow")
KINDS = ["faster_rcnn_fbnetv3_a_C4", "faster_rcnn_fbnetv3_g_FPN", "retinanet_fbnetv3_a_FPN"]
MASKS_AND_KEYPOINTS = "masks and keypoints"
NAMES = ["a", "b", "c", "d", "e"]


def detection_config(name=KINDS[0]):
    cfg = small_config(KINDS[0] if name == MASKS_AND_KEYPOINTS else name)
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.INPUT.MAX_SIZE_TEST = 160
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 64
    cfg.DATASETS.TEST = ()
    return cfg


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`exported(kind)` is the detector as detectron2 runs it, and its export; each is created once."""
    detectors = {}

    def export(kind):
        if kind not in detectors:
            folder = tmp_path_factory.mktemp("detector")
            cfg = detection_config(kind)
            if "FPN" in kind:
                save_arch(SHALLOW, folder / "shallow.yaml")
                cfg.MODEL.FBNETV3.ARCH = str(folder / "shallow.yaml")
            state = calibrated_detector(cfg, calibration_inputs(), 0.01).state_dict()
            if kind == MASKS_AND_KEYPOINTS:
                cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = True
                cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
                torch.manual_seed(0)
                state = {**build_model(cfg).state_dict(), **state}
                # Untrained, every mask would have probabilities near 0.5
                state["roi_heads.mask_head.predictor.weight"] *= 1000
                state["roi_heads.keypoint_head.score_lowres.weight"] *= 20
            torch.save({"model": state}, folder / "model.pth")
            done = export_detector(
                cfg, folder / "model.pth", folder / "out", classes=NAMES, name=kind, command="mine"
            )
            detectors[kind] = ConfigPredictor(cfg, folder / "model.pth", optimize=False), done
        return detectors[kind]

    return export


def calibration_inputs(images=None):
    """Images with boxes, as detectron2's mapper returns them, on which BatchNorm statistics are computed."""
    inputs = []
    for photo in images or sample_detector_images()[1:6:4]:
        pixels = np.array(photo.convert("RGB").resize((128, 96)))[:, :, ::-1]
        annotated = image(96, 128, boxes=((8.0, 8.0, 72.0, 56.0), (70.0, 30.0, 120.0, 90.0)))
        inputs.append({**annotated, "image": torch.tensor(pixels.copy()).permute(2, 0, 1).float()})
    return inputs


@pytest.fixture
def folder(exported):
    return exported(KINDS[0])[1].folder


def photographs():
    """A photo in several sizes, one of them narrower than the stride of any feature map when resized."""
    flower = sample_detector_images()[4]
    return [
        np.asarray(flower.resize(size))
        for size in ((640, 427), (97, 96), (160, 90), (61, 200), (33, 31), (300, 7))
    ]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", [*KINDS, MASKS_AND_KEYPOINTS])
def test_it_gives_detectron2s_detections(kind, runtime, exported):
    pytest.importorskip(runtime, reason="runtimes are optional: pip install '.[export]'")
    original, done = exported(kind)
    predictor = deploy.load(done.folder, runtime)
    images = photographs()
    agreement = compare_detections(
        [predictor.detect(image) for image in images], [detect_boxes(original, image) for image in images]
    )
    assert agreement.equal == agreement.detections > 50
    assert agreement.largest_box_difference < 0.05 and agreement.largest_score_difference < 1e-5


def test_masks_and_keypoints_are_detectron2s(exported):
    original, done = exported(MASKS_AND_KEYPOINTS)
    predictor = deploy.load(done.folder)
    assert [output["name"] for output in done.manifest.output][-2:] == ["masks", "keypoint_heatmaps"]
    compared = 0
    for photo in photographs():
        (expected,) = original([photo[:, :, ::-1]])
        detections = predictor(photo)
        if len(detections) != len(expected):  # equal scores may be cut off differently
            continue
        compared += len(expected)
        order = [nearest_row(expected, detection) for detection in detections]
        masks = np.stack([detection.mask for detection in detections])
        keypoints = np.stack([detection.keypoints for detection in detections])
        assert masks.shape == (len(detections), *photo.shape[:2]) and masks.dtype == bool
        assert 0.1 < masks.mean() / expected.pred_masks.float().mean() < 10
        assert (masks != expected.pred_masks[order].numpy()).mean() < 1e-4
        expected_keypoints = expected.pred_keypoints[order].numpy()
        assert (np.abs(keypoints - expected_keypoints)[..., :2] < 0.01).mean() > 0.98
        assert np.allclose(keypoints[..., 2], expected_keypoints[..., 2], rtol=0.01)
    assert compared > 50


def test_the_manifest_says_how_masks_and_keypoints_agree(exported):
    check = exported(MASKS_AND_KEYPOINTS)[1].manifest.verification
    assert check["masks"] == check["equal"] > 50 and check["keypoints"] == 3 * check["masks"]
    assert check["equal_masks"] >= 0.99 * check["masks"] and check["mean_mask_iou"] > 0.99
    assert check["equal_keypoints"] >= 0.95 * check["keypoints"]
    assert check["largest_keypoint_distance"] <= check["tolerance"]["keypoint"]
    assert "masks" not in exported(KINDS[0])[1].manifest.verification


def nearest_row(instances, detection):
    distance = (instances.pred_boxes.tensor - torch.tensor(detection.box)).abs().amax(1)
    distance[instances.pred_classes != detection.class_index] = np.inf
    return int(distance.argmin())


@pytest.mark.parametrize("kind", [*KINDS, MASKS_AND_KEYPOINTS])
def test_detections_do_not_depend_on_the_batch(kind, exported):
    predictor = deploy.load(exported(kind)[1].folder)
    photo = photographs()[0]
    images = [photo, photo[::-1].copy(), photographs()[1], photo[:, ::-1].copy(), np.zeros_like(photo)]
    batched = predictor.detect_batch(images)
    assert len({len(arrays) for arrays in batched}) > 1
    for photo, arrays in zip(images, batched, strict=True):
        alone = predictor.detect(photo)
        assert compare_detections([arrays], [alone]).equal == len(alone) == len(arrays)
    assert predictor(images, batch_size=4)[2] == predictor(images[2])
    with pytest.raises(UsageError, match="batch_size"):
        predictor(images, batch_size=0)


def test_paths_arrays_and_pillow_images_give_the_same_detections(folder, tmp_path):
    predictor = deploy.load(folder)
    photo = sample_detector_images()[0]
    photo.save(tmp_path / "photo.png")
    exif = Image.Exif()
    exif[274] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "rotated.png", exif=exif)
    detections = predictor(photo)
    same = [photo, np.asarray(photo), tmp_path / "photo.png", str(tmp_path / "rotated.png")]
    assert detections and predictor(same) == [detections] * 4
    best = detections[0]
    assert best.label == NAMES[best.class_index] and 0 < best.score <= 1
    assert 0 <= best.box[0] < best.box[2] <= photo.width and 0 <= best.box[1] < best.box[3] <= photo.height
    assert [d.score for d in detections] == sorted((d.score for d in detections), reverse=True)
    assert predictor(photo, score_threshold=best.score) == [d for d in detections if d.score == best.score]
    assert predictor([]) == [] and predictor(photo, score_threshold=1) == []
    with pytest.raises(UsageError, match="score_threshold 2 must be in"):
        predictor(photo, score_threshold=2)


def test_the_manifest_describes_the_folder(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    assert (manifest["task"], manifest["command"], manifest["network"]) == ("detection", "mine", KINDS[0])
    assert manifest["input"] == {"name": "images", "type": "uint8", "shape": [None, None, None, 3]}
    assert manifest["output"] == [
        {"name": "boxes", "type": "float32", "shape": [None, 4]},
        {"name": "scores", "type": "float32", "shape": [None], "threshold": 0.05},
        {"name": "classes", "type": "int64", "shape": [None], "category_ids": [1, 2, 3, 4, 5]},
        {"name": "image_indices", "type": "int64", "shape": [None]},
    ]
    check = manifest["verification"]
    assert (
        check["images"] == len(sample_detector_images())
        and 0.99 * check["detections"] <= check["equal"] > 20
    )
    fields = json.loads((folder / "preprocessing.json").read_text())
    assert (fields["shortest"], fields["longest"], fields["channels"]) == (96, 160, "RGB")
    assert json.loads((folder / "classes.json").read_text()) == NAMES


def test_the_graph_has_only_onnx_operators_and_named_dynamic_axes(folder):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(folder / "model.onnx")
    operators = {node.op_type for node in model.graph.node}
    assert {"RoiAlign", "NonMaxSuppression", "TopK"} <= operators and "BatchNormalization" not in operators
    assert {node.domain for node in model.graph.node} == {""}
    assert [size.dim_param for size in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "height",
        "width",
        "",
    ]


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 100), (1, 1000), (37, 4000), (224, 225)])
def test_images_are_resized_as_by_detectron2(size):
    cfg = detection_config()
    for shortest, longest in ((224, 320), (800, 1333), (0, 320)):
        cfg.INPUT.MIN_SIZE_TEST = shortest
        cfg.INPUT.MAX_SIZE_TEST = longest
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        expected = inference_resize(cfg).get_transform(image).apply_image(image)
        assert np.array_equal(ShortSideResize(shortest, longest)(image), expected)


class ConstantDetector(torch.nn.Module):
    """Detects two boxes in every image, or none if its first pixel is black."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.register_buffer(
            "corners", torch.tensor([[1.0, 2.0, 30.0, 40.0], [50.0, 10.0, 90.0, 60.0]]) + offset
        )

    def forward(self, images):
        is_light = images[:, 0, 0].sum(1) > 0
        scores = torch.tensor([0.9, 0.8]) * is_light[:, None]
        boxes = self.corners.expand(images.shape[0], -1, -1)
        image_indices, _, rows = box_ops.multiclass_nms(boxes, scores[:, None], 0.5, 0.1, 100).unbind(1)
        return self.corners[rows], scores[image_indices, rows], rows, image_indices


def constant_detections(pixels):
    with torch.no_grad():
        return DetectionArrays(
            *(value.numpy() for value in ConstantDetector()(torch.tensor(pixels)[None])[:3])
        )


WHITE, BLACK = (np.full((120, 100, 3), value, np.uint8) for value in (255, 0))


def write(output, model=None, images=(WHITE,), **changes):
    arguments = {"classes": ["x", "y"], "original": constant_detections, "name": "mine", **changes}
    return export_detector_to_onnx(
        model or ConstantDetector(), ShortSideResize(0, 1), output=output, images=images, **arguments
    )


def test_images_without_detections(tmp_path):
    done = write(tmp_path / "out", images=[WHITE, BLACK])
    predictor = deploy.load(done.folder)
    assert predictor([BLACK, WHITE])[0] == [] and len(predictor(WHITE)) == 2
    assert predictor.detect(BLACK).boxes.shape == (0, 4)
    assert done.manifest.verification["detections"] == 2


@pytest.mark.parametrize("classes", [[-1, 0], [0, 2]])
def test_a_class_index_without_a_name(classes):
    class WrongClasses:
        def run_outputs(self, input_name, value):
            boxes = np.zeros((2, 4), np.float32)
            return boxes, np.ones(2, np.float32), np.array(classes), np.zeros(2, int)

    predictor = deploy.DetectorPredictor(WrongClasses(), ShortSideResize(0, 1), ["x", "y"])
    message = f"returns class indices {classes[0]} to {classes[1]}, but has 2 class names"
    with pytest.raises(ExportError, match=message):
        predictor(WHITE)


@pytest.mark.parametrize("offset", [0.2, float("nan")])
def test_an_export_with_other_detections_is_not_kept(offset, tmp_path):
    with pytest.raises(
        ExportError,
        match=r"mine: onnxruntime .* different detections than .* 0 of \d are equal.*Nothing was exported",
    ):
        write(tmp_path / "out", ConstantDetector(offset))
    assert not list(tmp_path.iterdir())


class ConstantMasks(ConstantDetector):
    """Detects the boxes of `ConstantDetector` with masks that cover them."""

    def forward(self, images):
        detections = super().forward(images)
        return (*detections, torch.ones(2, 4, 4)[detections[2]])


def constant_masks(pixels, columns):
    """Return what `ConstantMasks` detects, with masks that only cover so many columns of the image."""
    arrays = constant_detections(pixels)
    masks = np.zeros((2, 120, 100), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, arrays.boxes.astype(int), strict=True):
        mask[y0:y1, x0 : min(x1, columns)] = True
    return replace(arrays, mask_runs=encode_mask_runs(masks))


def test_an_export_with_other_masks_is_not_kept(tmp_path):
    options = {"model": ConstantMasks(), "output_names": (*DETECTOR_OUTPUTS, MASKS)}
    done = write(tmp_path / "out", original=lambda pixels: constant_masks(pixels, 100), **options)
    assert done.manifest.verification["equal_masks"] == 2
    with pytest.raises(
        ExportError, match="mine: onnxruntime .* gives different masks .*: 1 of 2 are equal"
    ):
        write(tmp_path / "other", original=lambda pixels: constant_masks(pixels, 70), **options)
    assert not (tmp_path / "other").exists()


class ConstantKeypoints(ConstantDetector):
    """Detects the boxes of `ConstantDetector` with heatmaps of two keypoints."""

    def forward(self, images):
        detections = super().forward(images)
        return (*detections, torch.zeros(2, 2, 4, 4)[detections[2]])


def test_the_folder_names_the_keypoints(tmp_path):
    skeleton = KeypointSkeleton(("nose", "tail"), lines=(("nose", "tail"),))
    options = {"model": ConstantKeypoints(), "output_names": (*DETECTOR_OUTPUTS, HEATMAPS)}
    done = write(tmp_path / "out", skeleton=skeleton, **options)
    assert deploy.load(done.folder).skeleton == skeleton
    text = done.folder.joinpath("manifest.json").read_text()
    done.folder.joinpath("manifest.json").write_text(text.replace('"names"', '"titles"'))
    with pytest.raises(ExportError, match=r"manifest.json: corrupt .*names.*: copy the whole folder again"):
        deploy.load(done.folder)


def test_nothing_to_compare(tmp_path):
    for images in ([BLACK], []):
        with pytest.raises(
            ExportError, match=rf"mine: detects nothing in the {len(images)} images .* \(--images\)"
        ):
            write(tmp_path / "out", images=images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_nothing(error, tmp_path, monkeypatch):
    def save(model, path):
        (tmp_path / path).write_bytes(b"half")
        raise error

    monkeypatch.setattr("onnx.save", save)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError):
        write(tmp_path / "new" / "out")
    assert not list((tmp_path / "new").iterdir())


def test_an_existing_folder_is_not_replaced():
    with pytest.raises(UsageError, match="already exists"):
        write(".")


@pytest.mark.parametrize(
    "keys, message",
    [
        (("INPUT.FORMAT", "L"), "INPUT.FORMAT L cannot be exported; supported: BGR, RGB"),
        (
            ("MODEL.ROI_HEADS.NUM_CLASSES", 4),
            r"5 class names for a detector of 4 classes: pass 4 names, or set MODEL.ROI_HEADS.NUM_CLASSES 5",
        ),
        (
            ("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignRotated"),
            "MODEL.ROI_MASK_HEAD.POOLER_TYPE ROIAlignRotated cannot be exported",
        ),
        (
            ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE RoIPool cannot be exported",
        ),
    ],
)
def test_detectors_that_cannot_be_exported(keys, message, tmp_path):
    cfg = detection_config()
    cfg.merge_from_list(keys)
    with pytest.raises(UsageError, match=message):
        if "supported: BGR" in message or "class names" in message:
            export_detector(cfg, "none.pth", tmp_path / "out", classes=NAMES)
        else:
            make_exportable(build_model(cfg).eval(), True)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Config and weights of a detector of digits, and the folder of its test images."""
    folder = tmp_path_factory.mktemp("digits")
    write_digit_scenes(folder, num_train=2, num_test=3)
    file = write_digits_config(folder / "digits.yaml", folder)
    images = [Image.open(path) for path in sorted((folder / "train").iterdir())]
    detector = calibrated_detector(load_detection_config(file), calibration_inputs(images), 0.01)
    torch.save({"model": detector.state_dict()}, folder / "model.pth")
    return file, folder / "model.pth", folder / "test"


def test_export_and_detect(digits, tool, tmp_path):
    file, weights, scenes = digits
    source, overrides = ("--config", file, "--weights", weights), ("TEST.DETECTIONS_PER_IMAGE", 20)
    ran = tool("export_net", *source, "--format", "onnx", "--output", tmp_path / "out", *overrides)
    assert ran.code == 0, ran.err
    check = json.loads((tmp_path / "out" / "manifest.json").read_text())["verification"]
    shown = f"of {check['detections']} detections in 3 images, {check['equal']} of onnxruntime"
    assert f"{tmp_path}/out/model.onnx: digits, " in ran.out and shown in ran.out
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == [
        str(digit) for digit in range(10)
    ]
    options = ("--input", scenes, "--no-pictures", "--score-threshold", 0.15)
    original = tool("detect", *source, *options, "--output", tmp_path / "original", *overrides)
    exported = tool("detect", "--model", tmp_path / "out", *options, "--output", tmp_path / "exported")
    assert exported.code == original.code == 0, exported.err + original.err
    results, expected = (
        [
            json.loads((tmp_path / folder / name).read_text())
            for name in ("coco_instances_results.json", "images.json")
        ]
        for folder in ("exported", "original")
    )
    assert results[1] == expected[1] and len(results[0]) == len(expected[0]) > 5
    for one, other in zip(results[0], expected[0], strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.01)
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert "score below" not in exported.err + exported.out
    options = ("--input", scenes, "--no-pictures", "--score-threshold", "0.5", "3=0.01")
    low = tool("detect", "--model", tmp_path / "out", *options, "--output", tmp_path / "low")
    assert low.code == 0
    assert "out: detects nothing with a score below 0.05, so --score-threshold 0.01 has no" in low.out


def test_wrong_calls_are_one_line(digits, folder, tool, tmp_path):
    file, weights, scenes = digits
    config = ("--config", file, "--weights", weights)
    out = ("--output", tmp_path / "out")
    for name, arguments, message in (
        (
            "export_net",
            [*config, "--format", "executorch"],
            "--format executorch for a detector must be one of onnx, openvino, web",
        ),
        ("export_net", [*config, "--format", "onnx", "--any-size"], "omit --any-size"),
        (
            "export_net",
            ["--config", file, "--format", "onnx"],
            "no weights found: pass --weights FILE or --weights published, or set OUTPUT_DIR",
        ),
        (
            "export_net",
            ["--config", file, "--weights", "published", "--format", "onnx"],
            "no weights for 'coco/digits",
        ),
        ("export_net", ["--model", "coco/faster", "--format", "onnx"], "no weights for 'coco/faster'"),
        (
            "detect",
            ["--model", folder, "--weights", weights, "--input", scenes],
            "omit --weights and KEY VALUE pairs",
        ),
        (
            "detect",
            ["--model", folder, "--input", scenes, "MODEL.DEVICE", "cpu"],
            "omit --weights and KEY VALUE pairs",
        ),
    ):
        ran = tool(name, *arguments, *out)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
        assert message in ran.err
    ran = tool("classify", folder, "x.png")
    assert (ran.code, ran.err.count("\n")) == (
        2,
        1,
    ) and "contains a detector; use tools/detect.py" in ran.err
    assert not (tmp_path / "out").exists()


def test_multiclass_nms_equals_torchvisions():
    torch.manual_seed(0)
    corners = torch.rand(2, 50, 2) * 100
    boxes = torch.cat((corners, corners + torch.rand(2, 50, 2) * 60), 2)
    scores = torch.rand(2, 3, 50)
    kept = box_ops.multiclass_nms(boxes, scores, 0.3, 0.4, 50)
    from torchvision.ops import batched_nms

    flat = scores.flatten()
    group = torch.arange(6).repeat_interleave(50)
    every = boxes.repeat_interleave(3, 0).reshape(-1, 4)
    rows = (flat > 0.4).nonzero().squeeze(1)
    expected = rows[batched_nms(every[rows], flat[rows], group[rows], 0.3)]
    assert torch.equal((kept[:, 0] * 3 + kept[:, 1]) * 50 + kept[:, 2], expected)
    limited = box_ops.multiclass_nms(boxes, scores, 0.3, 0.4, 2)
    counts = torch.bincount(limited[:, 0] * 3 + limited[:, 1])
    assert counts.tolist() == [2] * 6 and all(row.tolist() in kept.tolist() for row in limited)


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match="run pip install onnxscript"):
        write(tmp_path / "out")
