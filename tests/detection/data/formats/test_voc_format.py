"""Pascal VOC's XML files."""

from xml.etree import ElementTree

import pytest
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.structures import BoxMode

from fbnetv3.detection.data.formats import AnnotationSource
from fbnetv3.errors import DataError
from tests.detection.annotation_files import add_voc_object
from tests.detection.coco_files import save_image


def write_xml(file, *objects, image="a.png", size=None, **more):
    """Write a file with objects (name, xmin, ymin, xmax, ymax)."""
    tree = ElementTree.Element("annotation")
    ElementTree.SubElement(tree, "filename").text = image
    if size:
        element = ElementTree.SubElement(tree, "size")
        for key, value in zip(("width", "height"), size, strict=True):
            ElementTree.SubElement(element, key).text = str(value)
    for item in objects:
        add_voc_object(tree, *item, **more)
    file.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(tree).write(file)


def test_boxes_are_those_of_detectron2(tmp_path):
    """Corners are one-based and inclusive."""
    write_xml(
        tmp_path / "Annotations" / "a.xml", ("cat", 1, 1, 10, 20), ("dog", 8.5, 9, 64, 48), size=(64, 48)
    )
    save_image(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\na\n")
    expected = load_voc_instances(str(tmp_path), "train", ["cat", "dog"])[0]["annotations"]
    raw = AnnotationSource(tmp_path, split="train").read()
    assert [
        BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in raw.data["annotations"]
    ] == [a["bbox"] for a in expected]
    assert raw.data["annotations"][0]["bbox"] == [0, 0, 10, 20]


def test_xml_files_next_to_their_images_in_folders_of_splits(tmp_path):
    """As Roboflow exports them; the size comes from the image if the file has none."""
    for split in ("train", "valid"):
        write_xml(tmp_path / split / "a.xml", ("cat", 1, 1, 10, 20))
        save_image(tmp_path / split / "a.jpg")
    source = AnnotationSource(tmp_path, split="val")
    assert source.resolve().reader.find_splits(tmp_path) == ["train", "val"]
    assert source.read().data["images"] == [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}]


def test_the_image_has_the_name_of_the_xml_file_or_the_one_in_it(tmp_path):
    folder = tmp_path / "Annotations"
    write_xml(folder / "a.xml", ("cat", 1, 1, 10, 20), image="old_name.png")
    write_xml(folder / "b.xml", ("cat", 1, 1, 10, 20), image="other.png")
    for name in ("a.png", "other.png"):
        save_image(tmp_path / "images" / name)
    raw = AnnotationSource(tmp_path).read()
    assert [image["file_name"] for image in raw.data["images"]] == ["images/a.png", "images/other.png"]


def test_difficult_objects_are_ordinary_and_counted(tmp_path):
    write_xml(tmp_path / "a.xml", ("cat", 1, 1, 10, 20), difficult=1)
    save_image(tmp_path / "a.png")
    raw = AnnotationSource(tmp_path).read()
    assert len(raw.data["annotations"]) == 1
    assert raw.notes == ("objects marked difficult, taken as ordinary ones: 1",)


def test_errors_name_file_and_object(tmp_path):
    write_xml(tmp_path / "a.xml", ("cat", 1, 1, 10, 20), ("cat", 1, "", 10, "nan"), ("", 1, 1, 2, 2))
    write_xml(tmp_path / "b.xml", ("cat", "nan", 1, 10, 20))
    (tmp_path / "c.xml").write_text("<annotation>\n<object>")
    save_image(tmp_path / "a.png")
    with pytest.raises(DataError) as error:
        AnnotationSource(tmp_path).read()
    assert str(error.value).startswith(
        f"{tmp_path}: 4 problems: a.xml: object 2: ymin '' must be a number; a.xml: object 3: has no name; "
        "b.xml: object 1: has a NaN or infinite corner; c.xml:2: is not XML"
    )


def test_a_list_may_name_missing_files(tmp_path):
    write_xml(tmp_path / "Annotations" / "a.xml", ("cat", 1, 1, 10, 20))
    save_image(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb  1\n")
    with pytest.raises(DataError, match=r"Annotations/b.xml: cannot be read \(No such file"):
        AnnotationSource(tmp_path, split="train").read()


def test_a_stated_size_that_the_image_does_not_have_is_refused(tmp_path):
    """Its boxes were drawn on another image; 0 means that the size is not known."""
    write_xml(tmp_path / "a.xml", ("cat", 1, 1, 10, 20), size=(640, 480))
    write_xml(tmp_path / "b.xml", ("cat", 1, 1, 10, 20), size=(0, 0))
    for name in "ab":
        save_image(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match=r"1 problem: a.xml: size 640 x 480, but the image is 64 x 48$"):
        AnnotationSource(tmp_path).read()


def test_a_list_that_is_not_text(tmp_path):
    write_xml(tmp_path / "Annotations" / "a.xml", ("cat", 1, 1, 10, 20))
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "train.txt").write_bytes(b"a\n\xff")
    with pytest.raises(DataError, match=r"ImageSets/train.txt: cannot be read as text \('utf-8' codec"):
        AnnotationSource(tmp_path, split="train").read()
