"""Annotation files as people write them: an oracle scores 100 on each that is accepted, others are refused."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("detectron2", reason="detectron2 is optional: python tools/install_detectron2.py")

from fbnetv3.detection.data.annotations.clean_annotations import read_clean_annotations
from fbnetv3.detection.data.annotations.dataset_dicts import to_dataset_dicts
from fbnetv3.detection.data.annotations.ground_truth import build_ground_truth
from fbnetv3.errors import UserError
from tests.detection.oracles import (
    annotated_boxes,
    evaluate_detections,
    expected_columns,
    oracle_results,
    pycocotools_results,
)
from tests.hardening.conftest import examples
from tests.hardening.mutations import mutated_data

SIZES = [(64, 48), (100, 100), (33, 257), (300, 200)]
FILES = {f"{width}x{height}/{i}.png": (width, height) for width, height in SIZES for i in range(2)}
MISSING = object()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of each size; the same names occur in several folders."""
    root = tmp_path_factory.mktemp("images")
    for name, size in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("L", size).save(root / name)
    return root


def entry(**values):
    return {key: value for key, value in values.items() if value is not MISSING}


def ids(count):
    """Return a strategy for different ids of one kind or of several."""
    number = st.integers(0, 1000)
    kinds = [number, number.map(float), st.text("abc019-/", max_size=4), st.integers(-(2**70), 2**70)]
    strategy = st.one_of(*kinds, st.one_of(*kinds))
    return st.lists(strategy, min_size=count, max_size=count, unique=True)


@st.composite
def boxes(draw, width, height):
    """Draw a box inside the image, at its border, outside, or without area."""
    kind = draw(st.sampled_from(["inside"] * 6 + ["crossing"] * 2 + ["outside", "no area", "all"]))
    number = draw(st.sampled_from([lambda low, high: st.integers(math.ceil(low), int(high)), st.floats]))
    if kind == "all":
        return [0, 0, width, height]
    if kind == "no area":
        return [draw(number(0, width)), draw(number(0, height)), 0, draw(number(0, height))]
    if kind == "outside":
        return [width + draw(number(0, 50)), draw(number(-50, 50)), draw(number(0, 50)), 10]
    margin = 0 if kind == "inside" else 30
    x, y = draw(number(-margin, width - 1)), draw(number(-margin, height - 1))
    return [x, y, draw(number(1, width - x + margin)), draw(number(1, height - y + margin))]


@st.composite
def segmentations(draw, box, width, height):
    """Draw a mask of a box: polygons in several forms, with too few points, or run-length masks."""
    x, y, w, h = box
    rectangle = [x, y, x + w, y, x + w, y + h, x, y + h]
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[max(0, int(y)) : max(0, int(y + h)), max(0, int(x)) : max(0, int(x + w))] = 1
    compressed = mask_util.encode(mask)
    compressed["counts"] = compressed["counts"].decode()
    flat = mask.ravel(order="F")
    changes = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    runs = np.diff(changes).tolist()
    counts = [0, *runs] if flat[0] else runs
    forms = [
        *[
            MISSING,
            None,
            [],
            [rectangle],
            rectangle,
            [rectangle[:6], rectangle[2:]],
            [rectangle, [1, 2, 3]],
        ],
        *[[[1, 2, 3, 4]], compressed, {"size": [height, width], "counts": counts}],
    ]
    return draw(st.sampled_from(forms))


@st.composite
def coco_files(draw):
    """Draw the content of an annotation file of which everything can be filled in."""
    names = draw(st.lists(st.sampled_from(sorted(FILES)), min_size=1, max_size=4, unique=True))
    image_ids = draw(ids(len(names)))
    images = []
    for image_id, name in zip(image_ids, names, strict=True):
        width, height = (
            draw(st.sampled_from([side, side, side, float(side), 0, None, MISSING])) for side in FILES[name]
        )
        images.append(entry(id=image_id, file_name=name, width=width, height=height))
    classes = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True))
    category_ids = draw(ids(len(classes) + 1))
    categories = [entry(id=key, name=name) for key, name in zip(category_ids, classes, strict=False)]
    if draw(st.integers(0, 4)) == 0:  # as Roboflow's exports have it
        categories.insert(0, {"id": category_ids[-1], "name": classes[-1], "supercategory": "none"})
    annotations = []
    for _ in range(draw(st.integers(0, 7))):
        position = draw(st.integers(0, len(names) - 1))
        width, height = FILES[names[position]]
        box = draw(boxes(width, height))
        segmentation = draw(segmentations(box, width, height))
        annotations.append(
            entry(
                id=draw(st.sampled_from([MISSING, None, 0, 1, 2, 2.0, "a.txt:3", 10**30])),
                image_id=draw(st.sampled_from([image_ids[position]] * 9 + ["nowhere"])),
                category_id=category_ids[draw(st.integers(0, len(classes) - 1))],
                bbox=box,
                segmentation=segmentation,
                iscrowd=draw(st.sampled_from([MISSING, None, 0, 0, False, 1, 0.0])),
                ignore=draw(st.sampled_from([MISSING, MISSING, MISSING, 0, 0, 1])),
                area=draw(st.sampled_from([MISSING, None, 0, -1, 1e12, math.nan, 25, box[2] * box[3]])),
            )
        )
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Keep the output of a failure readable."""
    caplog.set_level("ERROR", "fbnetv3")


def read(data, folder):
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "annotations.json")
        file.write_text(json.dumps(data))
        return read_clean_annotations(file, folder, max_opened=None)


@examples(100)
@given(data=coco_files(), rng=st.randoms(use_true_random=False), drawn=st.data())
def test_an_oracle_scores_100_on_every_file(data, rng, drawn, folder, tmp_path_factory):
    clean = read(data, folder)
    truth = annotated_boxes(data, FILES)
    found = sum(map(len, truth.values()))
    event(f"objects: {min(found, 3)}")
    # Class names of the detector, some of them not in the dataset, in any order
    classes = drawn.draw(st.permutations([*clean.classes, "other"]))
    assert oracle_results(clean, truth, classes) == pytest.approx(expected_columns(clean), nan_ok=True)
    assert found == clean.summary.boxes

    # Training sees the same boxes
    for record in to_dataset_dicts(clean, [classes.index(name) for name in clean.classes]):
        trained = [
            (tuple(a["bbox"]), classes[a["category_id"]]) for a in record["annotations"] if not a["iscrowd"]
        ]
        expected = [
            ((x0, y0, x1 - x0, y1 - y0), name) for (x0, y0, x1, y1), name in truth[record["image_id"]]
        ]
        assert [name for _, name in trained] == [name for _, name in expected]
        for (box, _), (other, _) in zip(trained, expected, strict=True):
            assert box == pytest.approx(other)

    # An imperfect detector gets what pycocotools computes from the cleaned file
    detections = {
        image_id: [
            (shifted(box, rng), name, round(rng.random(), 2)) for box, name in objects if rng.random() < 0.9
        ]
        for image_id, objects in truth.items()
    }
    if any(detections.values()):
        expected = pycocotools_results(clean, detections, tmp_path_factory.getbasetemp())
        assert evaluate_detections(clean, detections)["bbox"] == pytest.approx(expected, nan_ok=True)


def shifted(box, rng):
    """Return a box moved and resized in steps that float32 represents."""
    x0, y0, x1, y1 = (round(8 * (value + rng.choice([0, 0, 0.5, -2, 5]))) / 8 for value in box)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


@examples(40)
@given(data=coco_files())
def test_an_oracle_of_masks_scores_100_on_every_file(data, folder):
    clean = read(data, folder)
    truth = build_ground_truth(clean, "segm")
    detections, masks = {}, {}
    for image, image_id in zip(clean.images, clean.image_ids, strict=True):
        objects = [a for a in truth.imgToAnns[image["id"]] if not a["iscrowd"]]
        corners = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in objects)]
        masks[image_id] = [mask_util.decode(a["segmentation"]).astype(bool) for a in objects]
        detections[image_id] = [
            (box, clean.classes[a["category_id"] - 1], 1.0) for box, a in zip(corners, objects, strict=True)
        ]
    results = evaluate_detections(clean, detections, masks=masks, tasks=("segm",))["segm"]
    expected = 100.0 if any(masks.values()) else math.nan
    assert results["AP"] == pytest.approx(expected, nan_ok=True)


@examples(100)
@given(data=coco_files().flatmap(mutated_data))
def test_files_with_mistakes_are_refused_or_an_oracle_scores_100(data, folder):
    try:
        clean = read(data, folder)
    except UserError as error:
        assert "\n" not in str(error)
        event("refused")
        return
    event("accepted")
    lacks_box = any(not annotation.get("bbox") for annotation in data["annotations"])
    if not lacks_box:
        truth = annotated_boxes(data, FILES)
        assert oracle_results(clean, truth) == pytest.approx(expected_columns(clean), nan_ok=True)
    for task in ("segm", "keypoints") if any("keypoints" in a for a in clean.annotations) else ("segm",):
        assert evaluate_detections(clean, {}, tasks=(task,))[task]["AP"] in (
            0,
            pytest.approx(math.nan, nan_ok=True),
        )
