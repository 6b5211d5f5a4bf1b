"""An exported detector finds what detectron2 finds, in images of any size, or is not there."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2", reason="detectron2 is optional: python tools/install_detectron2.py")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is optional: pip install '.[export]'")

from fbnetv3 import deploy
from fbnetv3.data.digit_scenes import write_digit_scenes
from fbnetv3.deploy.detector_graph import box_ops
from fbnetv3.deploy.detector_graph.detector_onnx import compare_detections, write_detector
from fbnetv3.deploy.formats import export_formats
from fbnetv3.deploy.input_images import sample_photographs
from fbnetv3.deploy.predictors.detector_predictor import DetectionArrays, ShortSideResize
from fbnetv3.detection.data.detection_images import inference_resize
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.export.detector_export import detect_boxes, export_detector
from fbnetv3.detection.export.exportable_detector import make_exportable
from fbnetv3.detection.inference.image_files import ConfigPredictor
from fbnetv3.errors import ExportError, OutputError, UsageError
from tests.detection.detectors import calibrated_detector, image, small_config, write_digits_config

KINDS = ["faster_rcnn_fbnetv3_a_C4", "faster_rcnn_fbnetv3_g_FPN", "retinanet_fbnetv3_a_FPN"]
NAMES = ["a", "b", "c", "d", "e"]


def config(name=KINDS[0]):
    cfg = small_config(name)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 160
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 64
    cfg.DATASETS.TEST = ()
    return cfg


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """`exported(kind)` is the detector as detectron2 runs it, and its folder; each is made once."""
    made = {}

    def export(kind):
        if kind not in made:
            folder, cfg = tmp_path_factory.mktemp("detector"), config(kind)
            torch.save({"model": calibrated_detector(cfg, trained_on(), 0.01).state_dict()}, folder / "model.pth")
            done = export_detector(cfg, folder / "model.pth", folder / "out", classes=NAMES, name=kind, command="mine")
            made[kind] = ConfigPredictor(cfg, folder / "model.pth", optimize=False), done
        return made[kind]

    return export


def trained_on(pictures=None):
    """Pictures with boxes, as detectron2's mapper gives them: BatchNorms settle on what is to be looked at."""
    found = []
    for picture in pictures or sample_photographs()[1:6:4]:
        pixels = np.array(picture.convert("RGB").resize((128, 96)))[:, :, ::-1]
        one = image(96, 128, boxes=((8.0, 8.0, 72.0, 56.0), (70.0, 30.0, 120.0, 90.0)))
        found.append({**one, "image": torch.tensor(pixels.copy()).permute(2, 0, 1).float()})
    return found


@pytest.fixture
def folder(exported):
    return exported(KINDS[0])[1].folder


def photographs():
    """Of several sizes, one narrower than any map's stride when resized."""
    flower = sample_photographs()[4]
    return [
        np.asarray(flower.resize(size)) for size in ((640, 427), (97, 96), (160, 90), (61, 200), (33, 31), (300, 7))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_what_detectron2_finds(kind, exported):
    original, done = exported(kind)
    found, images = deploy.load(done.folder), photographs()
    agreement = compare_detections(
        [found.boxes(image) for image in images], [detect_boxes(original, image) for image in images]
    )
    assert agreement.equal == agreement.detections > 50
    assert agreement.box_difference < 0.05 and agreement.score_difference < 1e-5


def test_paths_arrays_and_pillow_images_are_the_same(folder, tmp_path):
    predictor, photo = deploy.load(folder), sample_photographs()[0]
    photo.save(tmp_path / "photo.png")
    exif = Image.Exif()
    exif[274] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    one = predictor(photo)
    assert (
        one and predictor([photo, np.asarray(photo), tmp_path / "photo.png", str(tmp_path / "turned.png")]) == [one] * 4
    )
    best = one[0]
    assert best.label == NAMES[best.index] and 0 < best.score <= 1
    assert 0 <= best.box[0] < best.box[2] <= photo.width and 0 <= best.box[1] < best.box[3] <= photo.height
    assert [d.score for d in one] == sorted((d.score for d in one), reverse=True)
    assert predictor(photo, score_threshold=best.score) == [d for d in one if d.score == best.score]
    assert predictor([]) == [] and predictor(photo, score_threshold=1) == []
    with pytest.raises(UsageError, match="score_threshold 2: is not in"):
        predictor(photo, score_threshold=2)


def test_the_manifest_says_what_is_there(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    assert (manifest["task"], manifest["command"], manifest["network"]) == ("detection", "mine", KINDS[0])
    assert manifest["input"] == {"name": "image", "type": "uint8", "shape": [None, None, 3]}
    assert [output["name"] for output in manifest["output"]] == ["boxes", "scores", "classes"]
    check = manifest["verification"]
    assert check["images"] == len(sample_photographs()) and 0.99 * check["detections"] <= check["equal"] > 20
    fields = json.loads((folder / "preprocessing.json").read_text())
    assert (fields["shortest"], fields["longest"], fields["channels"]) == (96, 160, "RGB")
    assert json.loads((folder / "classes.json").read_text()) == NAMES


def test_onnx_has_its_own_operators_and_names_for_open_sizes(folder):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(folder / "model.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert {"RoiAlign", "NonMaxSuppression", "TopK"} <= kinds and "BatchNormalization" not in kinds
    assert {node.domain for node in model.graph.node} == {""}
    assert [size.dim_param for size in model.graph.input[0].type.tensor_type.shape.dim] == ["height", "width", ""]


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 100), (1, 1000), (37, 4000), (224, 225)])
def test_images_get_detectron2s_size(size):
    cfg = config()
    for shortest, longest in ((224, 320), (800, 1333), (0, 320)):
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = shortest, longest
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        expected = inference_resize(cfg).get_transform(image).apply_image(image)
        assert np.array_equal(ShortSideResize(shortest, longest)(image), expected)


class Fixed(torch.nn.Module):
    """Boxes that hang on nothing but the first pixel: none where it is black."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.register_buffer("boxes", torch.tensor([[1.0, 2.0, 30.0, 40.0], [50.0, 10.0, 90.0, 60.0]]) + offset)

    def forward(self, image):
        scores = torch.tensor([0.9, 0.8]) * (image[0, 0].sum() > 0)
        kept = box_ops.multiclass_nms(self.boxes[None], scores[None, None], 0.5, 0.1, 100)[:, 2]
        return self.boxes[kept], scores[kept], kept


def fixed(pixels):
    with torch.no_grad():
        return DetectionArrays(*(value.numpy() for value in Fixed()(torch.tensor(pixels))))


WHITE, BLACK = (np.full((120, 100, 3), value, np.uint8) for value in (255, 0))


def write(output, model=None, images=(WHITE,), **changes):
    arguments = {"classes": ["x", "y"], "original": fixed, "name": "mine", **changes}
    return write_detector(model or Fixed(), ShortSideResize(0, 1), output=output, images=images, **arguments)


def test_nothing_may_be_found(tmp_path):
    done = write(tmp_path / "out", images=[WHITE, BLACK])
    predictor = deploy.load(done.folder)
    assert predictor([BLACK, WHITE])[0] == [] and len(predictor(WHITE)) == 2
    assert predictor.boxes(BLACK).boxes.shape == (0, 4)
    assert done.manifest.verification["detections"] == 2


@pytest.mark.parametrize("offset", [0.2, float("nan")])
def test_an_export_that_finds_something_else_is_not_kept(offset, tmp_path):
    with pytest.raises(
        ExportError, match=r"mine: onnxruntime .* of \d detections 0 are the same.*nothing was exported"
    ):
        write(tmp_path / "out", Fixed(offset))
    assert not list(tmp_path.iterdir())


def test_images_without_an_object_prove_nothing(tmp_path):
    with pytest.raises(ExportError, match=r"mine: finds nothing in the 1 images .* \(--images\)"):
        write(tmp_path / "out", images=[BLACK])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("end", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_export_cut_short_leaves_nothing(end, tmp_path, monkeypatch):
    def save(model, path):
        (tmp_path / path).write_bytes(b"half")
        raise end

    monkeypatch.setattr("onnx.save", save)
    with pytest.raises(KeyboardInterrupt if isinstance(end, KeyboardInterrupt) else OutputError):
        write(tmp_path / "new" / "out")
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"classes": []}, "no class names"),
        ({"images": []}, "no image to compare"),
        ({"output": "."}, "is there already"),
    ],
)
def test_wrong_arguments(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        write(**{"output": tmp_path / "out", **changes})


@pytest.mark.parametrize(
    "keys, message",
    [
        (("INPUT.FORMAT", "L"), "INPUT.FORMAT L cannot be exported; supported: BGR, RGB"),
        (("MODEL.ROI_HEADS.NUM_CLASSES", 4), r"5 class names for a detector of 4 classes \(MODEL.ROI_HEADS.NUM"),
        (("MODEL.MASK_ON", True), "mask and keypoint heads cannot be exported"),
        (("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"), "MODEL.ROI_BOX_HEAD.POOLER_TYPE RoIPool cannot be exported"),
    ],
)
def test_detectors_that_cannot_be_exported(keys, message, tmp_path):
    cfg = config()
    cfg.merge_from_list(keys)
    with pytest.raises(UsageError, match=message):
        if "supported: BGR" in message or "class names" in message:
            export_detector(cfg, "none.pth", tmp_path / "out", classes=NAMES)
        else:
            from detectron2.modeling import build_model

            make_exportable(build_model(cfg).eval(), True)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Config and weights of a detector of digits, and the folder of scenes that it is tested on."""
    folder = tmp_path_factory.mktemp("digits")
    write_digit_scenes(folder, train=2, test=3)
    file = write_digits_config(folder / "digits.yaml", folder)
    pictures = [Image.open(path) for path in sorted((folder / "train").iterdir())]
    torch.save(
        {"model": calibrated_detector(load_detection_config(file), trained_on(pictures), 0.01).state_dict()},
        folder / "model.pth",
    )
    return file, folder / "model.pth", folder / "test"


def test_export_and_detect(digits, tool, tmp_path):
    file, weights, scenes = digits
    source, most = ("--config", file, "--weights", weights), ("TEST.DETECTIONS_PER_IMAGE", 20)
    ran = tool("export_net", *source, "--format", "onnx", "--output", tmp_path / "out", *most)
    assert ran.code == 0, ran.err
    check = json.loads((tmp_path / "out" / "manifest.json").read_text())["verification"]
    shown = f"finds {check['equal']} of {check['detections']} detections in 3 images as detectron2 does"
    assert f"{tmp_path}/out/model.onnx: digits, " in ran.out and shown in ran.out
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == [str(digit) for digit in range(10)]
    asked = ("--input", scenes, "--no-pictures", "--score-threshold", 0.15)
    theirs = tool("detect", *source, *asked, "--output", tmp_path / "theirs", *most)
    ours = tool("detect", "--model", tmp_path / "out", *asked, "--output", tmp_path / "ours")
    assert ours.code == theirs.code == 0, ours.err + theirs.err
    found, expected = (
        [json.loads((tmp_path / who / name).read_text()) for name in ("coco_instances_results.json", "images.json")]
        for who in ("ours", "theirs")
    )
    assert found[1] == expected[1] and len(found[0]) == len(expected[0]) > 5
    for one, other in zip(found[0], expected[0], strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.01)
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_wrong_calls_are_one_line(digits, folder, tool, tmp_path):
    file, weights, scenes = digits
    config = ("--config", file, "--weights", weights)
    out = ("--output", tmp_path / "out")
    for name, arguments, message in (
        ("export_net", [*config, "--format", "executorch"], "detectors are exported to onnx, not to executorch"),
        ("export_net", [*config, "--format", "onnx", "--int8"], "detectors are exported to onnx, not to int8"),
        ("export_net", ["--config", file, "--format", "onnx"], "no weights: give --weights FILE, or set OUTPUT_DIR"),
        ("export_net", ["--config", file, "--weights", "random", "--format", "onnx"], "random is for classifiers"),
        ("export_net", ["--config", file, "--weights", "published", "--format", "onnx"], "no detector 'digits.yaml'"),
        ("export_net", ["--model", "coco/faster", "--format", "onnx"], "no detector 'coco/faster' with weights"),
        ("detect", ["--model", folder, "--weights", weights, "--input", scenes], "omit --weights and config keys"),
        ("detect", ["--model", folder, "--input", scenes, "MODEL.DEVICE", "cpu"], "omit --weights and config keys"),
    ):
        ran = tool(name, *arguments, *out)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
        assert message in ran.err
    ran = tool("classify", folder, "x.png")
    assert (ran.code, ran.err.count("\n")) == (2, 1) and "holds a detector: tools/detect.py takes it" in ran.err
    assert not (tmp_path / "out").exists()


def test_detections_are_compared_one_by_one():
    box = np.float32([[0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 20, 20]])
    score = np.float32([0.9, 0.9, 0.5])
    number = np.array([1, 1, 2])
    every = DetectionArrays(box, score, number)
    assert compare_detections([every], [every]).equal == 3
    twice = compare_detections(
        [DetectionArrays(box[:1], score[:1], number[:1])], [DetectionArrays(box[:2], score[:2], number[:2])]
    )
    assert (twice.equal, twice.detections) == (1, 2)
    for other in (
        DetectionArrays(box + 0.11, score, number),
        DetectionArrays(box, score + 2e-4, number),
        DetectionArrays(box, score, number + 1),
    ):
        assert compare_detections([other], [every]).equal < 3 and compare_detections([other], [every]).detections > 3


def test_best_boxes_are_torchvisions():
    torch.manual_seed(0)
    corners = torch.rand(2, 50, 2) * 100
    boxes = torch.cat((corners, corners + torch.rand(2, 50, 2) * 60), 2)
    scores = torch.rand(2, 3, 50)
    found = box_ops.multiclass_nms(boxes, scores, 0.3, 0.4, 20)
    from torchvision.ops import batched_nms

    flat = scores.flatten()
    group = torch.arange(6).repeat_interleave(50)
    every = boxes.repeat_interleave(3, 0).reshape(-1, 4)
    rows = (flat > 0.4).nonzero().squeeze(1)
    expected = rows[batched_nms(every[rows], flat[rows], group[rows], 0.3)][:20]
    assert torch.equal((found[:, 0] * 3 + found[:, 1]) * 50 + found[:, 2], expected)


def test_a_missing_library_is_named_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(export_formats.MissingPackageError, match="run pip install onnxscript"):
        write(tmp_path / "out")
