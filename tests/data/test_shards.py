"""Shards with webdataset's layout, written by tools/make_shards.py or other programs; errors name corrupt files."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fbnetv3.data import CorruptImageError, build_dataset, build_loader
from fbnetv3.data.shards import WINDOW, ShardDataset, write_shards
from fbnetv3.data.transforms import Preprocessing
from fbnetv3.errors import DataError, UsageError


def gray_image(number, format="JPEG"):
    """Encode an image of one gray level, which identifies it."""
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (number, number, number)).save(file, format)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Write 25 images of three classes in shards of ten, and four for validation."""
    write_shards(((gray_image(5 * i), ".jpg", i % 3) for i in range(25)), tmp_path / "shards", "train", 10)
    write_shards(((gray_image(i, "PNG"), ".png", i % 3) for i in range(4)), tmp_path / "shards", "val")
    (tmp_path / "shards" / "classes.txt").write_text("ant\nbee\ncow\n")
    return tmp_path / "shards"


def shade(image):
    return round(image.decode(3).float().mean().item())


def test_images_come_back_with_their_classes(folder):
    data = build_dataset("shards", str(folder), "train")
    assert (len(data), data.classes, len(data.shards)) == (25, ["ant", "bee", "cow"], 3)
    for number in range(25):
        image, target = data[number]
        assert (shade(image), target) == (5 * number, number % 3)
    assert data.image_name(24) == f"{folder}/train-000002.tar:00000024.jpg"
    assert len(build_dataset("shards", str(folder), "val")) == 4


def test_shards_of_other_programs(tmp_path):
    """Members are in folders with other files between them, the class comes first, and the classes have no names."""
    (tmp_path / "val").mkdir()
    with tarfile.open(tmp_path / "val" / "a.tar", "w") as tar:
        for number in range(3):
            for ending, content in (
                ("cls", b"%d\n" % number),
                ("json", b"{}"),
                ("jpeg", gray_image(number)),
            ):
                info = tarfile.TarInfo(f"n01/img{number}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data = build_dataset("shards", str(tmp_path), "val")
    assert [data[i][1] for i in range(3)] == [0, 1, 2] and data.classes == ["0", "1", "2"]


def write_tar(path, members):
    """Write a tar file with members in the given order, names may repeat."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def images_and_classes(folder):
    data = build_dataset("shards", str(folder), "train")
    names = [data.image_name(index).rpartition(":")[2] for index in range(len(data))]
    return dict(zip(names, (data[index][1] for index in range(len(data))), strict=True))


IMAGE = gray_image(0)


@pytest.mark.parametrize(
    ("members", "classes"),
    [
        # Dots in names: each image has its own class
        (
            {
                "p.v1.jpg": IMAGE,
                "p.v1.cls": b"1",
                "p.v2.jpg": IMAGE,
                "p.v2.cls": b"2",
                "p.jpg": IMAGE,
                "p.cls": b"0",
            },
            {"p.v1.jpg": 1, "p.v2.jpg": 2, "p.jpg": 0},
        ),
        # webdataset's rule: the sample is x, with the fields left.jpg, right.jpg and cls
        (
            {
                "d.1/x.left.jpg": IMAGE,
                "d.1/x.right.jpg": IMAGE,
                "d.1/x.cls": b"3",
                "d.1/y.left.JPG": IMAGE,
                "d.1/y.CLS": b"4",
            },
            {"d.1/x.left.jpg": 3, "d.1/x.right.jpg": 3, "d.1/y.left.JPG": 4},
        ),
        # The main image of a sample has a mask next to it
        ({"x.jpg": IMAGE, "x.seg.png": IMAGE, "x.cls": b"5", "x.json": b"{}"}, {"x.jpg": 5}),
        # Equal stems, and equal names in different folders
        (
            {"a/1.jpg": IMAGE, "a/1.png": IMAGE, "a/1.cls": b"0", "b/1.jpg": IMAGE, "b/1.cls": b"1"},
            {"a/1.jpg": 0, "a/1.png": 0, "b/1.jpg": 1},
        ),
        # As `tar cf x.tar .` names them on a Mac
        ({"./x.jpg": IMAGE, "./._x.jpg": IMAGE, "./x.cls": b"2", "./._x.cls": b"junk"}, {"./x.jpg": 2}),
    ],
)
def test_names_and_classes_in_shards_of_other_programs(members, classes, tmp_path):
    write_tar(tmp_path / "train.tar", members.items())
    assert images_and_classes(tmp_path) == classes


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.jpg", IMAGE), ("x.cls", b"0"), ("x.jpg", IMAGE)], "has several members x.jpg"),
        ([("x.jpg", IMAGE), ("x.cls", b"0"), ("./x.jpg", IMAGE)], "has several members x.jpg"),
        ([("x.jpg", IMAGE), ("x.cls", b"0"), ("x.cls", b"1")], "has several classes of x"),
        (
            [("x.a.b.jpg", IMAGE), ("x.a.cls", b"0"), ("x.cls", b"1")],
            "the class of x.a.b.jpg is ambiguous: x has 2 classes",
        ),
        ([("p.v1.jpg", IMAGE), ("p.v1.cls", b"1"), ("p.v2.jpg", IMAGE)], r"p\.v2\.jpg has no class"),
    ],
)
def test_ambiguous_shards_are_refused(members, message, tmp_path):
    write_tar(tmp_path / "train.tar", members)
    with pytest.raises(DataError, match=rf"train\.tar: {message}"):
        build_dataset("shards", str(tmp_path), "train")


def test_skipped_members_are_counted_in_one_line(tmp_path, caplog):
    members = {
        "x.jpg": IMAGE,
        "x.seg.png": IMAGE,
        "x.cls": b"0",
        "x.json": b"{}",
        "._x.jpg": b"",
        "y.txt": b"",
    }
    for name in ("train-0.tar", "train-1.tar"):
        write_tar(tmp_path / name, members.items())
    (tmp_path / "._train-0.tar").write_bytes(b"of a Mac")
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        assert len(build_dataset("shards", str(tmp_path), "train")) == 2
        (record,) = caplog.records
        assert record.message == (
            f"{tmp_path}: 2 shards: 2 images; skipped 4 members that are no images, 2 hidden members, "
            "2 additional images of samples"
        )


def test_the_index_is_cached_and_rebuilt_for_a_different_file(folder, cache, monkeypatch):
    build_dataset("shards", str(folder), "train")
    assert len(list((cache / "shards").iterdir())) == 3
    monkeypatch.setattr("fbnetv3.data.shards._read_index", None)
    assert len(build_dataset("shards", str(folder), "train")) == 25
    monkeypatch.undo()
    monkeypatch.setenv("FBNETV3_CACHE", str(cache))
    for path in (cache / "shards").iterdir():
        path.write_text("nonsense")
    assert len(build_dataset("shards", str(folder), "train")) == 25
    write_shards([(gray_image(7), ".jpg", 2)], folder, "train")
    assert len(build_dataset("shards", str(folder), "train")) == 16


def test_a_cache_that_cannot_be_written(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FBNETV3_CACHE", str(tmp_path / "file"))
    assert len(build_dataset("shards", str(folder), "train")) == 25


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_every_image_once(folder, workers):
    data = build_dataset("shards", str(folder), "train")
    loader = build_loader(
        data, Preprocessing(16, 16).transform(), batch_size=5, training=True, workers=workers
    )
    names = []
    for epoch in range(2):
        loader.sampler.epoch = epoch
        names.append([name for batch in loader for name in batch.names])
    assert len(set(names[0])) == 25 and sorted(names[0]) == sorted(names[1]) and names[0] != names[1]


def test_neighbors_come_from_few_shards(tmp_path):
    shards = write_shards(((gray_image(0), ".jpg", 0) for i in range(200)), tmp_path, "train", 5)
    data = ShardDataset(shards)
    order = data.order(torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(200))
    assert len(set((order[: WINDOW * 5] // 5).tolist())) == WINDOW
    assert not torch.equal(order[:80].sort().values, order[:80])


def test_files_that_are_not_shards(folder, tmp_path):
    path = folder / "train-000001.tar"
    complete = path.read_bytes()
    for content in (b"", b"nonsense" * 999, complete[: len(complete) // 2]):
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=r"train-000001\.tar: (is not a readable tar file|is truncated|has no images)"
        ):
            build_dataset("shards", str(folder), "train")
    with pytest.raises(DataError, match=r"has no shards val/\*\.tar or \*val\*\.tar"):
        build_dataset("shards", str(tmp_path / "nowhere"), "val")
    with pytest.raises(UsageError, match=r"DATA\.ROOT is not set"):
        build_dataset("shards", "", "val")


def test_an_image_without_class(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = len(gray_image(0))
        tar.addfile(info, io.BytesIO(gray_image(0)))
    with pytest.raises(
        DataError, match=r"train\.tar: a\.jpg has no class, which should be in a \.cls file"
    ):
        build_dataset("shards", str(tmp_path), "train")


def test_a_class_without_name(folder):
    (folder / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(
        DataError, match=r"00000002\.jpg: has class 2, but classes\.txt lists only 2 classes"
    ):
        build_dataset("shards", str(folder), "train")


def test_a_corrupt_image_in_a_shard(folder):
    write_shards([(gray_image(0)[:300], ".jpg", 0)], folder, "train")
    data = build_dataset("shards", str(folder), "train")
    with pytest.raises(CorruptImageError, match=r"train-000000\.tar:00000000\.jpg: corrupt image"):
        data[0][0].decode(3)


def test_a_shard_that_was_deleted(folder):
    data = build_dataset("shards", str(folder), "train")
    (folder / "train-000000.tar").unlink()
    with pytest.raises(CorruptImageError, match=r"train-000000\.tar:00000000\.jpg: no such file"):
        data[0]


def test_training_reads_the_shards_of_the_tool(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
            image.save(tmp_path / "images" / name / f"{number}.JPEG")
    tool = Path(__file__).resolve().parents[2] / "tools" / "make_shards.py"
    command = [tool, tmp_path / "images", tmp_path / "shards", "--split", "val", "--images-per-shard", "5"]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/shards: 12 images of 2 classes in 3 shards\n"
    data = build_dataset("shards", str(tmp_path / "shards"), "val")
    again = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert again.returncode == 2 and "val-000000.tar: exists already" in again.stderr
    (tmp_path / "images" / "dog").rename(tmp_path / "images" / "ant")
    command[command.index("val")] = "train"
    other = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert other.returncode == 1 and "classes.txt: the classes differ" in other.stderr
    assert data.classes == ["cat", "dog"]
    assert sorted(data[i][1] for i in range(12)) == [0] * 6 + [1] * 6


@pytest.mark.parametrize("text", ["\ufeffant\nbee\ncow\n", "ant \r\nbee\t\r\ncow\r\n\r\n"])
def test_class_names_have_no_spaces_or_marks_around_them(folder, text):
    (folder / "classes.txt").write_text(text, newline="")
    assert build_dataset("shards", str(folder), "train").classes == ["ant", "bee", "cow"]


def test_class_names_that_cannot_be_read(folder):
    (folder / "classes.txt").write_bytes(b"\xfcber\n")
    with pytest.raises(DataError, match="classes.txt: cannot be read: 'utf-8' codec"):
        build_dataset("shards", str(folder), "train")
    (folder / "classes.txt").write_text("cat\n\ndog\n")
    with pytest.raises(DataError, match="classes.txt is not a list of names: write one name per line"):
        build_dataset("shards", str(folder), "train")
