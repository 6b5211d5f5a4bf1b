"""All formats give the same raw annotations, and are told apart."""

import shutil

import pytest

from fbnetv3.detection.data.formats import (
    ANNOTATION_FORMATS,
    AnnotationSource,
    find_format,
    split_sources,
)
from fbnetv3.errors import DataError
from tests.detection.annotation_files import CLASSES, SPLITS, write_formats


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same dataset by format."""
    return write_formats(tmp_path_factory.mktemp("formats"))


def content(raw):
    """Return each image's name, size and boxes with class names."""
    names = {category["id"]: category["name"] for category in raw.data["categories"]}
    images = {}
    for image in raw.data["images"]:
        boxes = [
            (names[a["category_id"]], *a["bbox"], a["area"], a["iscrowd"])
            for a in raw.data["annotations"]
            if a["image_id"] == image["id"]
        ]
        images[image["file_name"].split("/")[-1]] = (image["width"], image["height"], boxes)
    return images


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["lvis", "yolo", "voc", "csv"])
def test_formats_agree_with_coco(data, name, split):
    coco = AnnotationSource(data["coco"], split=split).read()
    raw = AnnotationSource(data[name], split=split).read()
    assert content(raw) == content(coco)
    assert list(content(raw)) == list(content(coco))  # in the same order
    assert raw.class_names == coco.class_names == CLASSES
    # Readers need not read images for the names of the classes
    assert AnnotationSource(data[name], split=split).class_names() == CLASSES


@pytest.mark.parametrize("name", ANNOTATION_FORMATS.names())
def test_the_format_and_the_splits_are_found(data, name):
    assert find_format(data[name]) == name
    source = AnnotationSource(data[name], split="val").resolve()
    assert (source.format, source.reader.find_splits(data[name])) == (name, ["train", "val"])


@pytest.mark.parametrize(
    ("name", "path", "images"),
    [
        ("coco", "train.json", None),
        ("coco", "train.json", "train"),
        ("lvis", "train.json", None),
        ("yolo", "images/train", None),
        ("voc", "ImageSets/Main/train.txt", None),
        ("voc", "ImageSets/Main/train.txt", "JPEGImages"),
        ("csv", "train.csv", None),
        ("csv", "train.csv", "images"),
    ],
)
def test_the_file_or_folder_of_one_split(data, name, path, images):
    root = data[name].parent if name == "yolo" else data[name]
    assert find_format(root / path) == name
    source = AnnotationSource(root / path, root / images if images else None, split="val")
    assert content(source.read()) == content(AnnotationSource(data["coco"], split="train").read())


def test_a_split_that_is_missing(data):
    with pytest.raises(DataError, match=r"has no split 'test': name one of train, val"):
        AnnotationSource(data["voc"], split="test").read()


def test_a_folder_without_annotations(tmp_path):
    with pytest.raises(
        DataError, match=r"has no annotations in a known format: set DATASETS.CUSTOM.FORMAT"
    ):
        find_format(tmp_path)
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        find_format(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "file"), [("coco", "_annotations.coco.json"), ("csv", "_annotations.csv")]
)
def test_splits_as_roboflow_lays_them_out_and_one_of_them(data, tmp_path, name, file):
    images = data["yolo"].parent / "images"
    for folder, split in (("train", "train"), ("valid", "val")):
        shutil.copytree(images / split, tmp_path / folder)
        shutil.copy(data[name] / f"{split}.{name.replace('coco', 'json')}", tmp_path / folder / file)
    for source in (AnnotationSource(tmp_path, split="val"), AnnotationSource(tmp_path / "valid")):
        assert content(source.read()) == content(AnnotationSource(data["coco"], split="val").read())
    with pytest.raises(DataError, match=r"has no annotations, such as train\."):
        AnnotationSource(images, format=name).read()


def test_a_folder_with_two_formats(data, tmp_path):
    (tmp_path / "train.json").symlink_to(data["coco"] / "train.json")
    (tmp_path / "train.csv").symlink_to(data["csv"] / "train.csv")
    with pytest.raises(DataError, match=r"may be coco or csv: set DATASETS.CUSTOM.FORMAT"):
        find_format(tmp_path)
    assert AnnotationSource(tmp_path, format="csv", split="train").class_names() == CLASSES


@pytest.mark.parametrize("name", ["voc", "csv"])
def test_formats_without_a_list_of_classes_have_those_of_the_training_split(data, name, tmp_path):
    training = tmp_path / "train.csv"
    training.write_text(
        "image,x0,y0,x1,y1,class\n" + "".join(f"a.png,1,1,9,9,{n}\n" for n in (*CLASSES, "ant"))
    )
    source = AnnotationSource(data[name], split="val", class_source=AnnotationSource(training))
    assert source.class_names() == source.read().class_names == ["ant", *CLASSES]
    # Classes that only the test split has could not be learned
    training.write_text("image,x0,y0,x1,y1,class\na.png,1,1,9,9,cat\n")
    with pytest.raises(
        DataError, match=r"classes that the training annotations lack: dog, owl; the training"
    ):
        source.read()


@pytest.mark.parametrize("name", ["voc", "csv"])
def test_a_trained_detector_can_be_evaluated_without_its_training_data(data, name, tmp_path):
    source = AnnotationSource(
        data[name], split="val", class_source=AnnotationSource(tmp_path / "train.csv")
    )
    assert source.class_names() == source.read().class_names == CLASSES


def test_all_splits_of_a_source(data):
    sources = split_sources(data["voc"])
    assert {split: len(source.read().data["images"]) for split, source in sources.items()} == SPLITS
    assert list(split_sources(data["coco"] / "train.json")) == ["all"]
