"""A check names what would stop or spoil training: each test spoils a dataset in one way."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from fbnetv3.data import DATASETS
from fbnetv3.data.check.check_dataset import check_dataset, check_path, guess_dataset
from fbnetv3.data.check.check_page import write_check_page
from fbnetv3.data.check.check_summary import check_text, check_to_data, summarize_split
from fbnetv3.data.check.duplicates import similar_pairs
from fbnetv3.data.check.examination import examine_dataset
from fbnetv3.data.check.findings import ERROR, WARNING
from fbnetv3.data.datasets import ArrayDataset
from fbnetv3.data.shards import write_shards
from fbnetv3.errors import DataError, UsageError

PHOTOS = [Image.fromarray(image) for image in load_sample_images().images]  # 640 x 427


@pytest.fixture
def folder(tmp_path):
    """A dataset without problems: ten different parts of photographs for each class and split."""
    position = 0
    for split in ("train", "val"):
        for class_index, name in enumerate(("temple", "flower")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(10):
                part = PHOTOS[class_index].crop((position, 5 * i, position + 200, 5 * i + 150))
                part.save(tmp_path / "data" / split / name / f"{i}.png")
                position += 5
    return tmp_path / "data"


def findings(folder):
    return {finding.kind: finding for finding in check_path(folder).findings if finding.severity != "note"}


def names(finding):
    return [[image.name.rpartition("data/")[2] for image in group] for group in finding.groups]


def test_a_clean_dataset(folder):
    check = check_path(folder)
    assert not check.has_errors
    assert findings(folder) == {}
    summary = summarize_split(check.splits["train"])
    assert (summary["images"], summary["classes"]) == (20, {"flower": 10, "temple": 10})
    assert (summary["width"], summary["height"]) == ([200, 200, 200], [150, 150, 150])
    assert (summary["modes"], summary["formats"]) == ({"RGB": 20}, {"PNG": 20})


def test_corrupt_files(folder):
    file = folder / "val" / "temple" / "3.png"
    file.write_bytes(file.read_bytes()[:2000])
    (folder / "val" / "flower" / "4.png").write_bytes(b"text")
    (folder / "val" / "flower" / "5.png").write_bytes(b"")
    found = findings(folder)
    assert found.keys() == {"corrupt"} and found["corrupt"].severity == ERROR
    assert names(found["corrupt"]) == [["val/flower/4.png"], ["val/flower/5.png"], ["val/temple/3.png"]]
    reasons = [group[0].error for group in found["corrupt"].groups]
    assert "not a format that Pillow can read" in reasons[0] and "truncated" in reasons[2]


def test_the_same_file_in_both_splits(folder):
    shutil.copy(folder / "train/temple/0.png", folder / "val/temple/copy.png")
    leak = findings(folder)["leak"]
    assert leak.severity == ERROR and "1 as the same file, 0 with equal pixels" in leak.message
    assert names(leak) == [["train/temple/0.png", "val/temple/copy.png"]]


def test_equal_pixels_in_another_format_are_a_leak(folder):
    Image.open(folder / "train/temple/0.png").save(folder / "val/temple/copy.bmp")
    assert "0 as the same file, 1 with equal pixels" in findings(folder)["leak"].message


def test_the_same_file_counts_as_such_also_next_to_another_format(folder):
    shutil.copy(folder / "train/temple/0.png", folder / "val/temple/copy.png")
    Image.open(folder / "train/temple/0.png").save(folder / "val/temple/copy.bmp")
    assert "1 image is in both train and val (1 as the same file" in findings(folder)["leak"].message


def test_one_image_under_two_classes(folder):
    shutil.copy(folder / "train/temple/0.png", folder / "train/flower/wrong.png")
    found = findings(folder)
    assert found.keys() == {"two classes"} and found["two classes"].severity == ERROR


def test_duplicates_in_a_split_are_a_warning(folder):
    shutil.copy(folder / "train/temple/0.png", folder / "train/temple/again.png")
    found = findings(folder)
    assert found.keys() == {"duplicates"} and found["duplicates"].severity == WARNING
    assert names(found["duplicates"]) == [["train/temple/0.png", "train/temple/again.png"]]


def test_smaller_and_compressed_copies_are_called_similar(folder):
    image = Image.open(folder / "train/temple/0.png")
    image.resize((120, 90)).save(folder / "val/temple/small.jpg", quality=60)
    found = findings(folder)
    assert found.keys() == {"similar across splits"} and found["similar across splits"].severity == WARNING
    assert names(found["similar across splits"]) == [["train/temple/0.png", "val/temple/small.jpg"]]


def test_tiny_and_plain_images_are_not_called_similar():
    """A few pixels or one color say nothing about the photo."""
    plain = np.full((5, 64, 64), 100, dtype=np.uint8) + np.arange(5, dtype=np.uint8)[:, None, None]
    tiny = (
        np.array(PHOTOS[0].convert("L").resize((16, 16)))[None]
        // np.arange(1, 4, dtype=np.uint8)[:, None, None]
    )
    for images in (plain, tiny):
        facts = examine_dataset(ArrayDataset("x", images, np.zeros(len(images), int), ["a"]), "train")
        assert similar_pairs(facts) == []


def test_similar_pairs_equal_a_search_over_all_pairs():
    rng = np.random.default_rng(0)
    base = np.array(PHOTOS[0].convert("L").resize((64, 64))).astype(int)
    noise = rng.normal(0, 1, (60, 64, 64)) * np.linspace(0, 60, 60)[:, None, None]
    images = (base + noise).clip(0, 255).astype(np.uint8)
    facts = examine_dataset(ArrayDataset("x", images, np.zeros(60, int), ["a"]), "train")
    expected = {
        (first.index, second.index)
        for i, first in enumerate(facts)
        for second in facts[i + 1 :]
        if (first.hash ^ second.hash).bit_count() <= 3
        and np.corrcoef(first.thumbnail.ravel(), second.thumbnail.ravel())[0, 1] >= 0.97
    }
    pairs = {tuple(sorted((first.index, second.index))) for first, second in similar_pairs(facts)}
    assert 10 < len(expected) < 1770
    assert pairs == expected


def test_a_class_only_in_val_is_an_error_and_one_only_in_train_a_warning(folder):
    shutil.rmtree(folder / "train" / "temple")
    shutil.copytree(folder / "val" / "flower", folder / "train" / "rose")
    for file in (folder / "train" / "rose").iterdir():
        Image.open(file).rotate(180).save(file)
    found = findings(folder)
    assert (
        found["classes only in val"].severity == ERROR and "temple" in found["classes only in val"].message
    )
    assert found["classes only in train"].severity == WARNING
    assert "rose" in found["classes only in train"].message


def test_a_split_that_is_missing(folder):
    shutil.rmtree(folder / "val")
    found = findings(folder)
    assert found["no val"].severity == ERROR and "no such folder" in found["no val"].message
    shutil.rmtree(folder / "train")
    with pytest.raises(DataError):
        check_dataset("imagefolder", str(folder), 0)


def test_unbalanced_classes(folder):
    for i in range(3, 10):
        (folder / "train" / "flower" / f"{i}.png").unlink()
    for i in range(30):
        PHOTOS[0].crop((3 * i, 250, 3 * i + 150, 400)).save(folder / "train" / "temple" / f"more{i}.png")
    found = findings(folder)
    assert found["imbalance"].message == "train is unbalanced: 40 of temple, 3 of flower"
    assert found["few images"].message == "1 class has fewer than 10 images in train: flower"


def save(folder, image, name="x.png", **options):
    image.save(folder / "train" / "temple" / name, **options)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (
            "dark",
            lambda: Image.fromarray(
                np.arange(40_000, dtype=np.uint32).reshape(200, 200).astype(np.uint8) // 30
            ),
        ),
        ("plain", lambda: Image.new("RGB", (100, 100), (200, 10, 10))),
        ("tiny", lambda: PHOTOS[0].resize((31, 60))),
    ],
)
def test_images_that_are_warned_about(folder, kind, make):
    save(folder, make())
    found = findings(folder)
    assert found.keys() == {kind} and found[kind].severity == WARNING
    assert names(found[kind]) == [["train/temple/x.png"]]


def test_16_bits_that_would_be_black(folder):
    """Ten bits of a sensor in a file of 16: spoiled either way, whether training reads or refuses it."""
    values = np.arange(10_000, dtype=np.uint16).reshape(100, 100) % 1024
    save(folder, Image.fromarray(values))
    check = check_path(folder)
    assert check.has_errors
    errors = {finding.kind for finding in check.findings if finding.severity == ERROR}
    assert errors in ({"turns black"}, {"corrupt"})
    black = np.zeros((100, 100), dtype=np.uint16)
    save(folder, Image.fromarray(black))
    assert not check_path(folder).has_errors  # black in the file, too


def test_notes(folder):
    exif = Image.Exif()
    exif[274] = 6
    save(folder, PHOTOS[0].crop((0, 300, 150, 400)), "turned.jpg", exif=exif)
    save(folder, PHOTOS[0].crop((0, 0, 640, 100)).convert("CMYK"), "wide.jpg")
    frames = [PHOTOS[1].crop((i, 300, i + 100, 400)) for i in (0, 50)]
    save(folder, frames[0], "frames.gif", save_all=True, append_images=frames[1:])
    notes = {finding.kind: names(finding) for finding in check_path(folder).findings}
    assert notes["turned"] == [["train/temple/turned.jpg"]]
    assert notes["elongated"] == [["train/temple/wide.jpg"]]
    assert notes["animated"] == [["train/temple/frames.gif"]]
    assert ["train/temple/wide.jpg"] in notes["modes"]


def test_a_folder_that_is_not_divided(folder):
    check = check_path(folder / "train")
    assert [*check.splits] == ["all"] and not check.has_errors
    assert "make_split.py" in check.findings[0].message


def test_shards_and_arrays_and_datasets_of_users(folder, tmp_path):
    for split in ("train", "val"):
        content = [
            ((folder / split / name / f"{i}.png").read_bytes(), ".png", target)
            for target, name in enumerate(("flower", "temple"))
            for i in range(10)
        ]
        write_shards(content, tmp_path / "shards", split)
    check = check_path(tmp_path / "shards")
    assert not check.has_errors and len(check.splits["val"].images) == 20
    assert check_dataset("digits", "", 0).splits["train"].images[0].name == "digits/train[0]"

    class Failing(ArrayDataset):
        def __getitem__(self, index):
            raise ZeroDivisionError("in a user's dataset")

    images = np.zeros((2, 40, 40), np.uint8)
    DATASETS.register(lambda root, split: Failing("mine", images, np.zeros(2, int), ["a"]), name="failing")
    try:
        corrupt, empty = check_dataset("failing", "", 0).findings
    finally:
        DATASETS.remove("failing")
    assert corrupt.groups[0][0].error == "ZeroDivisionError: in a user's dataset"
    assert (empty.kind, empty.message) == ("empty classes", "1 class has no image in train: a")


def test_images_with_several_labels():
    targets = np.array([[1, 1, 0], [0, 0, 0]])
    images = np.stack([np.eye(40, dtype=np.uint8) * 200, np.eye(40, dtype=np.uint8)[::-1] * 200])

    class MultiLabel(ArrayDataset):
        def __getitem__(self, index):
            return Image.fromarray(self.images[index]), self.targets[index]

    first, second = examine_dataset(MultiLabel("x", images, targets, ["a", "b", "c"]), "train")
    assert (first.class_names, second.class_names) == (("a", "b"), ())
    assert not first.error and not second.error
    assert first.class_name == "a + b"


def test_kinds_of_datasets_are_recognized(folder, tmp_path):
    assert guess_dataset(folder) == ("imagefolder", str(folder))
    assert guess_dataset(folder / "train") == ("", str(folder / "train"))
    (tmp_path / "subset.json").write_text("{}")
    assert guess_dataset(tmp_path / "subset.json")[0] == "imagelist"
    with pytest.raises(DataError, match="no such file or folder"):
        guess_dataset(tmp_path / "none")
    with pytest.raises(UsageError, match="DATA.ROOT is not set"):
        check_dataset("imagefolder", "", 0)


def test_skipped_files_are_said_if_the_dataset_counts_them(folder):
    check = check_path(folder)
    check.splits["train"].dataset.skipped = "skipped 2 hidden files"
    from fbnetv3.data.check.check_dataset import skipped_files

    assert skipped_files(check.splits["train"].dataset) == "skipped 2 hidden files"
    assert skipped_files(check.splits["val"].dataset) == ""


def test_worker_processes_find_the_same(folder):
    (folder / "val" / "flower" / "4.png").write_bytes(b"text")
    results = [json.dumps(check_to_data(check_path(folder, workers))) for workers in (0, 2)]
    assert results[0] == results[1]


def test_text_page_and_data_with_names_of_any_kind(folder, tmp_path):
    name = "<script>alert(1)</script>猫"
    (folder / "train" / "temple").rename(folder / "train" / name.replace("/", "_"))
    (folder / "val" / "flower" / "<b>.png").write_bytes(b"text")
    (folder / "val" / "flower" / "\udcff.png").write_bytes(b"text")
    check = check_path(folder)
    text = check_text(check)
    assert "error: 2 images cannot be read" in text and "猫" in text
    text.encode()  # can be printed
    write_check_page(check, tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text()
    assert "<script>" not in page and "&lt;b&gt;.png" in page
    assert page.count("data:image/jpeg;base64,") >= 38
    assert "http://" not in page and "https://" not in page  # self-contained
    assert json.loads(json.dumps(check_to_data(check)))["errors"] is True


@pytest.mark.parametrize(
    "file, name",
    [
        ("test.csv", "csv"),
        ("val.csv", "csv"),
        ("val/0.tar", "shards"),
        ("test/0.tar", "shards"),
        ("a.tar", "shards"),
    ],
)
def test_kinds_of_datasets_without_training_images(tmp_path, file, name):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert guess_dataset(tmp_path) == (name, str(tmp_path))


def test_csv_files_next_to_class_folders_are_said_to_be_used(folder, caplog):
    caplog.set_level("INFO")
    guess_dataset(folder)
    assert not caplog.messages
    (folder / "val.csv").touch()
    assert guess_dataset(folder)[0] == "csv"
    assert caplog.messages == [
        f"{folder}: has val.csv and class folders in train/, val/; the CSV files are used (DATA.NAME imagefolder uses "
        "the folders)"
    ]


def test_an_empty_class_folder_is_one_finding_among_others(folder):
    (folder / "train" / "empty").mkdir()
    (folder / "val" / "empty").mkdir()
    (folder / "train" / "flower" / "broken.jpg").write_bytes(b"nonsense")
    problems = findings(folder)
    assert set(problems) == {"corrupt", "empty classes"}
    assert (
        problems["empty classes"].severity == ERROR
        and "no image in train: empty" in problems["empty classes"].message
    )


def test_a_single_class_is_an_error(tmp_path):
    """Such as a folder between train/ and the class folders."""
    for split in ("train", "val"):
        for name in "ab":
            path = tmp_path / split / "images" / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)).save(path)
    found = {finding.kind: finding for finding in check_path(tmp_path).findings}
    assert (
        found["one class"].severity == ERROR
        and "only one class in train, images" in found["one class"].message
    )
