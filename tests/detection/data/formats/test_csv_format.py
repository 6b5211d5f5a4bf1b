"""CSV files with one row per box."""

import pytest

from fbnetv3.detection.data.formats import AnnotationSource, find_format
from fbnetv3.errors import DataError
from tests.detection.coco_files import save_image


def read(folder, text, images=("a.png", "b.png")):
    for name in images:
        save_image(folder / name)
    (folder / "boxes.csv").write_text(text)
    return AnnotationSource(folder / "boxes.csv").read()


def boxes(raw):
    """Return image, class and [x, y, width, height] of each box."""
    files = {image["id"]: image["file_name"] for image in raw.data["images"]}
    names = {category["id"]: category["name"] for category in raw.data["categories"]}
    return [(files[a["image_id"]], names[a["category_id"]], a["bbox"]) for a in raw.data["annotations"]]


@pytest.mark.parametrize(
    "text",
    [
        "image,x0,y0,x1,y1,class\na.png,8,9,20,30,cat\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,64,48,cat,8,9,20,30\n",  # TensorFlow's
        'image_id,width,height,bbox,label\na,64,48,"[8, 9, 12, 21]",cat\n',  # Kaggle's, without suffix
        "Label;Path;X1;Y1;X2;Y2\ncat;a.png;8;9;20;30\n",
        "file_name\tx\ty\tw\th\tname\na.png\t8\t9\t12\t21\tcat\n",
        "a.png,8,9,20,30,cat\n",  # without a header
        "\ufeffimage,xmin,ymin,xmax,ymax,class\na.png,8.0,9.0,20.0,30.0,cat\n",  # with Excel's byte order mark
        "image,xmin,ymin,xmax,ymax,class\na.png,0.125,0.1875,0.3125,0.625,cat\n",  # fractions
    ],
)
def test_headers_as_people_write_them(tmp_path, text):
    assert boxes(read(tmp_path, text)) == [("a.png", "cat", [8, 9, 12, 21])]


def test_a_file_without_classes_has_one(tmp_path):
    assert boxes(read(tmp_path, "image,x0,y0,x1,y1\na.png,8,9,20,30\n"))[0][1] == "object"


@pytest.mark.parametrize("header", ["", "path,x1,y1,x2,y2,class\n"])
def test_rows_without_a_box_are_empty_images(tmp_path, header):
    raw = read(tmp_path, f"{header}b.png,,,,,\na.png,8,9,20,30,cat\na.png,1,2,3,4,dog\n")
    assert [image["file_name"] for image in raw.data["images"]] == ["b.png", "a.png"]
    assert [name for _, name, _ in boxes(raw)] == ["cat", "dog"]


def test_a_file_of_labels_is_not_one_of_boxes(tmp_path):
    (tmp_path / "train.csv").write_text("file,label\na.png,cat\n")
    with pytest.raises(DataError, match="no annotations in a known format"):
        find_format(tmp_path / "train.csv")


def test_errors_name_the_line(tmp_path):
    text = "image,x0,y0,x1,y1,class\na.png,8,9,,30,cat\na.png,8,9,nan,30,cat\n,1,1,2,2,cat\na.png,1,1,2,2,\na.png,1\n"
    with pytest.raises(DataError) as error:
        read(tmp_path, text)
    assert str(error.value) == (
        f"{tmp_path / 'boxes.csv'}: 5 problems: boxes.csv:2: box 8, 9, , 30 must be four numbers; boxes.csv:3: box "
        "8, 9, nan, 30 must be four finite numbers; boxes.csv:4: names no image; boxes.csv:5: has a box, but no class "
        "and 1 more"
    )


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            'a.png,8,9,20,30,"cat\nb.png,8,9,20,30,cat\n',
            r"boxes\.csv: cannot be read as CSV \(unexpected end",
        ),
        ('a.png,8,9,20,30,"cat\nb.png,8,9,20,30,cat"\n', r"boxes\.csv:3: has a cell of several lines"),
        ('a.png,8,9,20,30,cat"\nb.png,8,9,20,30,cat\n', ""),
    ],
)
def test_a_quotation_mark_too_many_hides_no_rows(tmp_path, rows, problem):
    text = f"image,x0,y0,x1,y1,class\n{rows}"
    if not problem:
        assert len(boxes(read(tmp_path, text, images=("a.png", "b.png")))) == 2
        return
    with pytest.raises(DataError, match=problem) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_name_in_another_folder_is_another_image(tmp_path):
    """`one/a.png` is missing and is not replaced by `two/a.png`."""
    raw = read(tmp_path, "image,x0,y0,x1,y1,class\none/a.png,8,9,20,30,cat\n", images=("two/a.png",))
    assert raw.data["images"] == [{"id": 1, "file_name": "one/a.png"}]


def test_text_that_cannot_be_a_file_name(tmp_path):
    raw = read(tmp_path, f"image,x0,y0,x1,y1,class\n{'a' * 300}.png,8,9,20,30,cat\n")
    assert "width" not in raw.data["images"][0]
