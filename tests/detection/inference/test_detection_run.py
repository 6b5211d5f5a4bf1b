"""tools/detect.py: images of all kinds in, pictures with boxes and a COCO results file out."""

import contextlib
import io
import json
import re

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image
from pycocotools.coco import COCO

from fbnetv3 import model_zoo
from fbnetv3.arch import configs_folder
from fbnetv3.detection.data.dataset_mapper import read_image_array
from fbnetv3.detection.data.detection_datasets import detector_classes
from fbnetv3.detection.inference.array_predictors import ConfigPredictor
from fbnetv3.detection.recorded_detectors import describe_detector
from fbnetv3.errors import DataError, UsageError
from fbnetv3.utils.downloads import cached_path
from tests.detection.coco_files import annotation, dataset, exif_with_orientation, save_dataset, save_image
from tests.detection.detectors import assert_same_detections, calibrated_detector, small_config
from tests.detection.inference.squares import moving_squares, read_video, save_video
from tests.fake_gpu import FakeGpu
from tests.tools.conftest import tool  # noqa: F401

CONFIG = f"""
_BASE_: {configs_folder() / "coco" / "faster_rcnn_fbnetv3_a_C4.yaml"}
MODEL:
  FBNETV3: {{ARCH: fbnetv3_a0, NORM: BN}}
  ROI_HEADS: {{NUM_CLASSES: 5}}
  RPN: {{POST_NMS_TOPK_TEST: 20}}
DATASETS: {{TRAIN: [], TEST: []}}
INPUT: {{MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 128}}
"""
NAMES = ("ant", "bee", "cow", "dog", "eel")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of a small detector that has detections in every image."""
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": calibrated_detector(small_config()).state_dict()}, path)
    return path


@pytest.fixture
def detect(tool, weights, tmp_path):  # noqa: F811
    """Function that runs tools/detect.py with the small detector."""
    (tmp_path / "config.yaml").write_text(CONFIG)

    def run(*arguments):
        return tool(
            "detect",
            "--config",
            tmp_path / "config.yaml",
            "--weights",
            weights,
            "--output",
            tmp_path / "out",
            *arguments,
        )

    return run


def read(path):
    return json.loads(path.read_text())


def load_results(annotations, results):
    """Load the results with pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(annotations)).loadRes(str(results))


IMAGES = {
    "gray.png": ((48, 64), {"mode": "L"}),
    "rgba.png": ((48, 64), {"mode": "RGBA"}),
    "palette.gif": ((48, 64), {"mode": "P"}),
    "deep.png": ((48, 64), {"mode": "I;16"}),
    "cmyk.tif": ((48, 64), {"mode": "CMYK"}),
    "rotated.jpg": ((64, 40), {"exif": exif_with_orientation(6)}),
    "narrow.png": ((90, 1), {}),
    "line.png": ((10_000, 1), {}),
    "tall.png": ((10_000, 8), {}),
    "pixel.bmp": ((1, 1), {}),
    "below/wide.JPG": ((33, 257), {}),
}


@pytest.mark.parametrize("batch", [1, 4])
def test_images_of_all_kinds(detect, tmp_path, batch):
    for name, (size, arguments) in IMAGES.items():
        save_image(tmp_path / "in" / name, *size, **arguments)
    ran = detect("--input", tmp_path / "in", "--batch-size", batch, "--score-threshold", "0.2")
    assert (ran.code, ran.err) == (0, "")
    out = tmp_path / "out"
    listed = {image["file_name"]: image for image in read(out / "images.json")["images"]}
    assert listed.keys() == IMAGES.keys()
    for name, ((height, width), _) in IMAGES.items():
        shown = (height, width) if name == "rotated.jpg" else (width, height)
        suffix = "" if name.lower().endswith((".png", ".jpg")) else ".png"
        with Image.open(out / "pictures" / f"{name}{suffix}") as picture:
            assert picture.size == shown and picture.mode == "RGB"
        assert (listed[name]["width"], listed[name]["height"]) == shown
    results = load_results(out / "images.json", out / "coco_instances_results.json")
    assert f"{len(results.anns)} objects in 11 images" in ran.out and len(results.anns) > 20
    for result in results.anns.values():
        image = results.imgs[result["image_id"]]
        x, y, width, height = result["bbox"]
        assert (
            x >= 0
            and y >= 0
            and x + width <= image["width"] + 0.01
            and y + height <= image["height"] + 0.01
        )
        assert 0.2 < result["score"] <= 1 and 1 <= result["category_id"] <= 5


def test_an_image_named_like_a_config_key(detect, tmp_path, monkeypatch):
    save_image(tmp_path / "TEST.JPG")
    monkeypatch.chdir(tmp_path)
    ran = detect("--input", "TEST.JPG", "TEST.DETECTIONS_PER_IMAGE", "3")
    assert (ran.code, ran.err) == (0, "")
    shown, more = re.search(
        r"(\d+) objects? in 1 image \(.*?\)(?:; (\d+) more with lower)?", ran.out
    ).groups()
    assert int(shown) + int(more or 0) == 3


def test_corrupt_files_are_named_and_skipped(detect, tmp_path):
    for name in ("a.png", "c.png"):
        save_image(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_text("not an image")
    save_image(tmp_path / "in" / "truncated.jpg")
    (tmp_path / "in" / "truncated.jpg").write_bytes((tmp_path / "in" / "truncated.jpg").read_bytes()[:700])
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    ran = detect("--input", tmp_path / "in")
    assert ran.code == 1
    assert f"{tmp_path / 'in' / 'b.png'}: corrupt image" in ran.out
    assert f"{tmp_path / 'in' / 'truncated.jpg'}: corrupt image" in ran.out
    assert ran.err == "error: 2 of 4 inputs could not be read; they are named above\n"
    assert [i["file_name"] for i in read(tmp_path / "out" / "images.json")["images"]] == ["a.png", "c.png"]
    assert [p.name for p in sorted((tmp_path / "out" / "pictures").iterdir())] == ["a.png", "c.png"]


def test_annotations_give_ids_and_names(detect, tmp_path):
    data = dataset(3, [annotation()], NAMES)
    for image, id in zip(data["images"], (70, 8, 900), strict=True):
        image["id"] = id
    for category, id in zip(data["categories"], (9, 2, 4, 7, 30), strict=True):
        category["id"] = id
    file, root = save_dataset(tmp_path, data)
    (root / "3.png").unlink()
    save_image(root / "unlisted.png")
    ran = detect("--input", root, "--annotations", file)
    assert ran.code == 0
    assert f"1 images are skipped: {file} does not list them" in ran.out
    assert f"{file}: 1 of its 3 images are not among the inputs" in ran.out
    results = load_results(file, tmp_path / "out" / "coco_instances_results.json")
    assert {result["image_id"] for result in results.anns.values()} == {70, 8}
    assert {result["category_id"] for result in results.anns.values()} <= {9, 2, 4, 7, 30}
    assert not (tmp_path / "out" / "images.json").exists()
    with pytest.raises(
        UsageError,
        match=r"have 2 categories \(cat, dog\), but the detector has 5 classes: pass annotations with",
    ):
        detector_classes(small_config(), dataset()["categories"])


def test_category_ids_belong_to_names_by_class_index():
    cfg = small_config()
    classes = detector_classes(
        cfg, [{"id": id, "name": name} for id, name in zip((9, 2, 4, 7, 30), NAMES, strict=True)]
    )
    assert list(classes.items()) == [(2, "bee"), (4, "cow"), (7, "dog"), (9, "ant"), (30, "eel")]
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN = ()
    assert detector_classes(cfg) == {1: "class 1", 2: "class 2", 3: "class 3", 4: "class 4", 5: "class 5"}
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    coco = list(detector_classes(cfg).items())
    assert (coco[0], coco[79]) == ((1, "person"), (90, "toothbrush"))
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    assert len(detector_classes(cfg)) == 5


def test_class_names_of_a_dataset_that_is_not_loaded(tmp_path):
    file, _ = save_dataset(tmp_path, dataset(1, classes=NAMES))
    name = f"not loaded {tmp_path}"
    MetadataCatalog.get(name).set(json_file=str(file))
    cfg = small_config()
    cfg.DATASETS.TEST, cfg.DATASETS.TRAIN = (name,), ()
    assert tuple(detector_classes(cfg).values()) == NAMES
    file.unlink()
    assert detector_classes(cfg)[1] == "class 1"


def test_an_interrupt_leaves_the_results_so_far(detect, tmp_path, monkeypatch):
    for n in range(4):
        save_image(tmp_path / "in" / f"{n}.png", seed=n)
    calls, real = [], ConfigPredictor.__call__

    def interrupted(self, images):
        calls.append(images)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, images)

    monkeypatch.setattr(ConfigPredictor, "__call__", interrupted)
    ran = detect("--input", tmp_path / "in")
    assert ran.code == 130
    assert ran.err == "interrupted; the output folder has the results so far\n"
    out = tmp_path / "out"
    assert [image["id"] for image in read(out / "images.json")["images"]] == [1, 2]
    results = load_results(out / "images.json", out / "coco_instances_results.json")
    assert {result["image_id"] for result in results.anns.values()} == {1, 2}
    assert sorted(path.name for path in out.rglob("*.*")) == [
        "0.png",
        "1.png",
        "coco_instances_results.json",
        "images.json",
    ]


def test_other_images_in_a_batch_change_nothing(weights):
    """Not even one that is much larger, to whose size the image would be padded."""
    cfg = small_config()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 200
    predictor = ConfigPredictor(cfg, weights)
    images = [
        np.random.default_rng(n).integers(0, 256, (*size, 3), np.uint8)
        for n, size in enumerate(((50, 70), (40, 400)))
    ]
    for together, alone in zip(predictor(images), (predictor([x])[0] for x in images), strict=True):
        assert len(alone) and torch.equal(together.scores, alone.scores)
        assert torch.equal(together.pred_boxes.tensor, alone.pred_boxes.tensor)
    assert predictor([]) == []


def test_images_are_sent_to_the_model_as_bytes(weights):
    dtypes = []
    predictor = ConfigPredictor(small_config(), weights)
    predictor.model.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0][0]["image"].dtype))
    predictor([np.zeros((50, 70, 3), np.uint8)])
    assert dtypes == [torch.uint8]


def test_a_detector_says_that_it_ignores_the_augmentation_of_evaluation(weights, caplog):
    caplog.set_level("INFO")
    cfg = small_config()
    cfg.TEST.AUG.ENABLED = True
    ConfigPredictor(cfg, weights)
    assert "TEST.AUG is for evaluation: images are detected in as they are" in caplog.messages


def test_the_optimized_predictor_has_the_same_detections(weights, tmp_path):
    """They are those of detectron2's own image reading, resizing and model."""
    from detectron2.data import detection_utils
    from detectron2.data import transforms as T

    from fbnetv3.detection import load_detector

    save_image(tmp_path / "x.jpg", 90, 130)
    cfg = small_config()
    fast, plain = (
        ConfigPredictor(cfg, weights, optimize=o)([read_image_array(tmp_path / "x.jpg")])[0]
        for o in (True, False)
    )
    model = load_detector(build_model(cfg), weights).eval()
    image = detection_utils.read_image(str(tmp_path / "x.jpg"), "BGR")
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST).get_transform(
        image
    )
    pixels = torch.from_numpy(resize.apply_image(image).astype("float32").transpose(2, 0, 1))
    with torch.no_grad():
        (expected,) = model([{"image": pixels, "height": 90, "width": 130}])
    assert len(plain) > 10
    assert torch.equal(plain.pred_boxes.tensor, expected["instances"].pred_boxes.tensor)
    assert_same_detections(fast, plain)


def test_masks_are_in_the_results(tmp_path, tool):  # noqa: F811
    cfg = small_config("mask_rcnn_fbnetv3_a_C4")
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 1, 16
    torch.save({"model": calibrated_detector(cfg).state_dict()}, tmp_path / "masks.pth")
    (tmp_path / "config.yaml").write_text(CONFIG)
    save_image(tmp_path / "x.png")
    keys = (
        "MODEL.MASK_ON",
        "True",
        "MODEL.ROI_MASK_HEAD.NUM_CONV",
        "1",
        "MODEL.ROI_MASK_HEAD.CONV_DIM",
        "16",
    )
    ran = tool(
        *("detect", "--config", tmp_path / "config.yaml", "--weights", tmp_path / "masks.pth"),
        *("--input", tmp_path / "x.png", "--output", tmp_path / "out", *keys),
    )
    assert (ran.code, ran.err) == (0, "")
    results = load_results(
        tmp_path / "out" / "images.json", tmp_path / "out" / "coco_instances_results.json"
    )
    assert results.anns and all(
        results.annToMask(result).shape == (48, 64) for result in results.anns.values()
    )


def test_a_model_zoo_detector(tool, released, tmp_path):  # noqa: F811
    """Weights are read from the download cache; categories are COCO's; config keys can be changed."""
    path = cached_path(model_zoo.get_checkpoint_url("coco/faster_rcnn_fbnetv3_a_C4_224.yaml"))
    path.parent.mkdir(parents=True)
    torch.save({"model": released[1]}, path)
    save_image(tmp_path / "x.png")
    arguments = ("--input", tmp_path / "x.png", "--output", tmp_path / "out", "--no-pictures")
    for name in ("faster_rcnn_fbnetv3_a_C4_224", "coco/faster_rcnn_fbnetv3_a_C4_224.yaml"):
        ran = tool(
            "detect",
            "--model",
            name,
            *arguments,
            "--score-threshold",
            "0",
            "TEST.DETECTIONS_PER_IMAGE",
            "7",
        )
        assert (ran.code, ran.err) == (0, "")
        assert "7 objects in 1 image (" in ran.out and not (tmp_path / "out" / "pictures").exists()
        categories = read(tmp_path / "out" / "images.json")["categories"]
        assert len(categories) == 80 and categories[-1] == {"id": 90, "name": "toothbrush"}
    ran = tool("detect", "--model", "fbnetv3_a", *arguments)
    assert ran.code == 2
    assert (
        "error: fbnetv3_a: no such run, checkpoint or exported folder, and no weights for 'coco/fbnetv3_a'"
        in ran.err
    )
    assert "in the model zoo: did you mean coco/faster" in ran.err


def test_errors_are_one_line(tool, detect, tmp_path):  # noqa: F811
    save_image(tmp_path / "x.png")
    (tmp_path / "empty").mkdir()
    file, _ = save_dataset(tmp_path, dataset(1, classes=NAMES))
    file.write_text("{")
    output = ("--output", tmp_path / "out")
    for ran, code, message in (
        (detect("--input", tmp_path / "nowhere"), 2, "nowhere: no such file or folder"),
        (detect("--input", "IMG_1234.JPG"), 2, "error: IMG_1234.JPG: no such file or folder"),
        (detect("--input", tmp_path / "empty"), 1, "empty: contains no images"),
        (
            detect("--input", tmp_path / "x.png", "--score-threshold", "2"),
            2,
            "--score-threshold 2: 2 must be a number in [0, 1]",
        ),
        (
            detect("--input", tmp_path / "x.png", "--batch-size", "0"),
            2,
            "--batch-size: 0 must be at least 1",
        ),
        (
            detect("--input", tmp_path / "x.png", "--annotations", file),
            1,
            "instances.json: is not JSON: line 1, column 2",
        ),
        (detect("--input", tmp_path / "x.png", "MODEL.NOTHING", "1"), 2, "unknown key MODEL.NOTHING"),
        (detect("--input", "MODEL.NOTHING", "1"), 2, "--input: MODEL.NOTHING is a config key"),
        (detect("MODEL.NOTHING", "1", "--input", tmp_path / "x.png"), 2, "unknown key MODEL.NOTHING"),
        (
            detect("--input", tmp_path / "x.png", "--output", tmp_path / "x.png"),
            1,
            "x.png: cannot be written: File",
        ),
        (
            tool("detect", "--input", "x", *output),
            2,
            "or an exported folder, or --config, or --weights",
        ),
        (
            tool("detect", "--config", tmp_path / "config.yaml", "--input", "x", *output),
            2,
            "config.yaml: no weights found",
        ),
    ):
        assert ran.code == code
        assert message in ran.err and ran.err.startswith("error: ") and ran.err.count("\n") == 1
    file.write_text(json.dumps(dataset(1, classes=NAMES)))
    ran = detect("--input", tmp_path / "x.png", "--annotations", file)
    assert (
        ran.code == 1
        and "lists none of the 1 images, such as x.png; it lists 1.png: name the folder" in ran.err
    )


def test_registered_classes_need_one_id_each():
    cfg = small_config()
    cfg.DATASETS.TEST = ("custom_ids",)
    metadata = MetadataCatalog.get("custom_ids")
    metadata.set(thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={7: 0})
    try:
        with pytest.raises(DataError, match="custom_ids: its metadata has 2 thing_classes but 1 ids"):
            detector_classes(cfg)
    finally:
        MetadataCatalog.remove("custom_ids")


def test_all_lists_may_be_followed_by_config_keys(detect, tmp_path):
    save_image(tmp_path / "x.png", 90, 130)
    limit = ("TEST.DETECTIONS_PER_IMAGE", "3")
    for option in (
        ("--classes", "class 1", "CLASS 2"),
        ("--score-threshold", "0.1", "class 1=0.05"),
        ("--save", "csv", "yolo"),
    ):
        ran = detect("--input", tmp_path / "x.png", *option, *limit)
        assert (ran.code, ran.err) == (0, "")
        count = int(re.match(r".*?(\d+) objects? in 1 image ", ran.out, re.DOTALL)[1])
        assert count <= 3
    assert f"table:       {tmp_path / 'out' / 'detections.csv'}" in ran.out
    assert (tmp_path / "out" / "labels" / "x.txt").exists()


def test_only_the_requested_classes_are_detected(detect, tmp_path):
    save_image(tmp_path / "x.png", 90, 130)
    out = tmp_path / "out"
    ids = {}
    for classes in ((), ("class 2", "class 4")):
        option = ("--classes", *classes) if classes else ()
        assert detect("--input", tmp_path / "x.png", *option).code == 0
        ids[classes] = {result["category_id"] for result in read(out / "coco_instances_results.json")}
    assert ids[()] > ids["class 2", "class 4"] and ids["class 2", "class 4"] <= {2, 4}
    ran = detect("--input", tmp_path / "x.png", "--classes", "zebra")
    assert ran.code == 2
    assert ran.err == (
        "error: the detector has no class 'zebra': available: class 1, class 2, class 3, class 4, class 5\n"
    )
    ran = detect("--input", tmp_path / "x.png", "--save", "xml")
    assert "unknown detection output 'xml': available: crops, csv, json, pictures, yolo" in ran.err


def test_the_device_overrides_that_of_the_config(detect, tmp_path):
    save_image(tmp_path / "x.png")
    ran = detect("--input", tmp_path / "x.png", "--device", "cpu", "--no-pictures", "MODEL.DEVICE", "cuda")
    assert ran.code == 0, ran.err
    ran = detect("--input", tmp_path / "x.png", "--device", "cuda:77")
    assert ran.code == 2 and ran.err.startswith("error: device 'cuda:77' cannot be used here (")


def test_images_are_copied_to_a_gpu_from_pinned_memory(weights):
    cfg = small_config()
    cfg.MODEL.DEVICE = "cuda"
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    with FakeGpu() as gpu:
        predictor = ConfigPredictor(cfg, weights)
        gpu.copies.clear()
        predictor([image])
    assert gpu.copies[:2] == ["pinned", "to the GPU"]


def test_a_video(detect, tmp_path):
    pytest.importorskip("cv2", reason="pip install opencv-python-headless")
    pytest.importorskip("trackers", reason="pip install trackers")
    save_video(tmp_path / "clip.mp4", moving_squares(6))
    ran = detect("--input", tmp_path / "clip.mp4", "--track", "--every", "2", "--score-threshold", "0.2")
    assert (ran.code, ran.err) == (0, "")
    assert "objects in 3 frames (" in ran.out
    frames, fps = read_video(tmp_path / "out" / "videos" / "clip.mp4")
    assert (len(frames), fps) == (3, 5)
    assert any("track_id" in result for result in read(tmp_path / "out" / "coco_instances_results.json"))


def test_a_checkpoint_that_records_its_config_suffices(tool, weights, tmp_path):  # noqa: F811
    """As a file, by either option, or in the folder of a run; class names and ids are those of its training."""
    cfg = small_config()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 128
    record = describe_detector(cfg, dict(zip((9, 2, 4, 7, 30), NAMES, strict=True)), {})
    checkpoint = {**torch.load(weights), "metadata": record.to_metadata()}
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "model_final.pth"
    torch.save(checkpoint, file)
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    save_image(tmp_path / "x.png")
    boxes = []
    for source in (("--weights", file), ("--model", file), ("--model", file.parent)):
        ran = tool("detect", *source, "--input", tmp_path / "x.png", "--output", tmp_path / "out")
        assert (ran.code, ran.err) == (0, "")
        listed = read(tmp_path / "out" / "images.json")["categories"]
        assert [(c["id"], c["name"]) for c in listed] == list(zip((9, 2, 4, 7, 30), NAMES, strict=True))
        boxes.append([result["bbox"] for result in read(tmp_path / "out" / "coco_instances_results.json")])
    assert boxes[0] and boxes == [boxes[0]] * 3
    ran = tool(
        "detect", "--model", file, "--weights", file, "--input", tmp_path / "x.png", "--output", tmp_path
    )
    assert ran.code == 2 and "already contains its weights: omit --weights" in ran.err
    ran = tool("detect", "--weights", weights, "--input", tmp_path / "x.png", "--output", tmp_path)
    assert ran.code == 2 and "does not record a detector's config: pass --config FILE" in ran.err
