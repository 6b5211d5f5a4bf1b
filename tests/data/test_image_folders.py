"""Folders of images: what counts as an image, what is skipped and counted, and that all datasets see the same."""

import itertools
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fbnetv3.data import build_dataset
from fbnetv3.data.classes.class_subset import draw_class_subset, save_class_subset
from fbnetv3.data.datasets import FolderDataset
from fbnetv3.data.image_folders import find_image_files, image_suffixes, scan_class_folders
from fbnetv3.errors import DataError


def write(root, *names):
    """Write files whose content is their name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def test_all_formats_that_pillow_reads_are_images():
    common = {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".gif",
        ".webp",
        ".avif",
        ".tif",
        ".tiff",
        ".bmp",
        ".ppm",
        ".jp2",
    }
    assert common | {".mpo", ".ico", ".tga", ".psd", ".pfm", ".qoi"} <= image_suffixes()
    programs_videos_and_documents = {
        ".eps",
        ".ps",
        ".pdf",
        ".mpg",
        ".mpeg",
        ".wmf",
        ".emf",
        ".h5",
        ".hdf",
        ".grib",
    }
    assert not programs_videos_and_documents & image_suffixes()


WRITTEN = [suffix for suffix in sorted(image_suffixes()) if Image.EXTENSION[suffix] in Image.SAVE]


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.filterwarnings("ignore:IM image format is deprecated")
def test_what_pillow_writes_is_read(suffix, tmp_path):
    (tmp_path / "train" / "one").mkdir(parents=True)
    path = tmp_path / "train" / "one" / f"x{suffix}"
    try:
        Image.new("RGB", (32, 32)).save(path)
    except (OSError, ValueError):  # a format of black and white, or of palettes
        Image.new("P" if suffix == ".blp" else "1", (32, 32)).save(path)
    image, _ = build_dataset("imagefolder", str(tmp_path), "train")[0]
    width, height = image.size
    assert image.decode(3).shape == (3, height, width)


def test_importing_does_not_load_all_readers():
    script = "import sys, fbnetv3.data; print('PIL.PsdImagePlugin' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_what_is_skipped_is_counted_in_one_line(tmp_path, caplog):
    root = tmp_path / "train"
    write(root, "one/a.png", "one/sub/b.JPG", "two/c.v1.webp", "one/.a.png", "one/._b.jpg", ".DS_Store")
    write(root, ".ipynb_checkpoints/x.png", "__MACOSX/one/._a.png", "two/@eaDir/thumbnail.jpg")
    write(root, "one/notes.txt", "labels.csv", "two/README", "stray.png")
    link(root / "two" / "gone.png", "nowhere.png")
    link(root / "two" / "itself.png", "itself.png")
    link(root / "one" / "back", "..")
    link(root / "again", ".")
    os.mkfifo(root / "two" / "pipe.png")
    dataset = FolderDataset(root)
    assert dataset.classes == ["one", "two"]
    assert [Path(path).relative_to(root).as_posix() for path, _ in dataset.samples] == [
        "one/a.png",
        "one/sub/b.JPG",
        "two/c.v1.webp",
    ]
    (record,) = caplog.records
    assert record.message == (
        f"{root}: 3 images; skipped 3 hidden files, 3 hidden folders, "
        "3 files without an image suffix (.csv, .txt, none), 1 image outside the class folders, "
        "2 links to a folder searched already, 2 broken links, 1 special file"
    )


def test_nothing_is_logged_about_tidy_folders(image_folder, caplog):
    build_dataset("imagefolder", str(image_folder), "train")
    assert not caplog.records


def test_links(tmp_path):
    """Linked files and folders are data; loops end, and a folder with several names counts once."""
    write(tmp_path / "elsewhere", "cats/a.png", "cats/b.png", "extra/c.png")
    root = tmp_path / "train"
    link(root / "cat", tmp_path / "elsewhere" / "cats")
    write(root, "dog/1/d.png")
    link(root / "dog" / "extra", tmp_path / "elsewhere" / "extra")
    link(root / "dog" / "0", "1")
    link(root / "dog" / "1" / "up", "../..")
    link(root / "dog" / "e.png", tmp_path / "elsewhere" / "cats" / "a.png")
    link(root / "home", tmp_path)
    scan = scan_class_folders(root)
    assert scan.classes == ["cat", "dog"]
    assert scan.images == [["cat/a.png", "cat/b.png"], ["dog/e.png", "dog/1/d.png", "dog/extra/c.png"]]
    assert scan.skipped.reasons == {"link{s} to a folder searched already": 3}
    assert find_image_files(root) == sorted(root / name for name in itertools.chain(*scan.images))


def test_files_that_belong_next_to_images_are_skipped_silently(tmp_path, caplog):
    write(tmp_path, "a.png", "a.txt")
    assert find_image_files(tmp_path, expected=(".txt",)) == [tmp_path / "a.png"]
    assert not caplog.records
    write(tmp_path, "b.pdf")
    find_image_files(tmp_path, expected=(".txt",))
    assert "skipped 1 file without an image suffix (.pdf)" in caplog.text


def test_relative_folders(tmp_path, monkeypatch):
    write(tmp_path, "train/cat/a.png")
    monkeypatch.chdir(tmp_path / "train")
    for folder in (Path("."), Path("../train"), Path("cat/..")):
        assert [path.name for path in find_image_files(folder)] == ["a.png"]
        assert scan_class_folders(folder).images == [["cat/a.png"]]


def test_classes_that_link_to_each_other(tmp_path):
    write(tmp_path, "one/a.png", "two/b.png")
    link(tmp_path / "one" / "other", "../two")
    link(tmp_path / "two" / "other", "../one")
    link(tmp_path / "zwei", "two")
    scan = scan_class_folders(tmp_path)
    assert scan.classes == ["one", "two"] and scan.images == [["one/a.png"], ["two/b.png"]]
    assert scan.skipped.reasons == {"link{s} to a folder searched already": 3}


def test_links_to_hidden_folders_are_followed(tmp_path):
    write(tmp_path, ".store/1/a.png")
    link(tmp_path / "one", ".store/1")
    assert scan_class_folders(tmp_path).images == [["one/a.png"]]


def test_a_folder_that_several_links_lead_to(tmp_path):
    write(tmp_path, "elsewhere/a.png", "elsewhere/sub/b.png")
    link(tmp_path / "train" / "one" / "x", tmp_path / "elsewhere")
    link(tmp_path / "train" / "one" / "y", tmp_path / "elsewhere" / "sub")
    link(tmp_path / "elsewhere" / "sub" / "up", "..")
    (images,) = scan_class_folders(tmp_path / "train").images
    assert sorted(Path(image).name for image in images) == ["a.png", "b.png"]


def test_a_class_folder_without_images(tmp_path):
    write(tmp_path, "train/cat/a.png", "train/dog/b.txt", "val/cat/a.png", "val/dog/b.txt")
    with pytest.raises(DataError, match="train: no image in the class folder dog; each class needs"):
        build_dataset("imagefolder", str(tmp_path), "train")
    val = build_dataset("imagefolder", str(tmp_path), "val")
    assert (val.classes, len(val)) == (["cat", "dog"], 1)
    (tmp_path / "val" / "cat" / "a.png").unlink()
    with pytest.raises(DataError, match="val: no image in the class folder cat, dog"):
        build_dataset("imagefolder", str(tmp_path), "val")
    with pytest.raises(DataError, match="train: no image in the class folder dog"):
        draw_class_subset(tmp_path / "train", 2, 1)


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    write(tmp_path, "cat/a.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be listed \(Permission denied\)"):
        FolderDataset(tmp_path)


def load_tool(name):
    path = Path(__file__).resolve().parents[2] / "tools" / f"{name}.py"
    spec = util.spec_from_file_location(name, path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


IMAGES = ["a.jpg", "a.png", "a.v1.png", "a.v1.x.jpg", "A.JPEG", "a..png", "-.bmp", "b c.gif", "ä.webp"]
NAMES = st.sampled_from([*IMAGES, ".a.jpg", "._a.png", "a.jpg.txt", "a.cls", "a"])
FOLDERS = st.lists(st.sampled_from(["n", "n.jpg", "x.y", ".hidden", "__MACOSX"]), max_size=2)
CLASSES = st.sampled_from(["cat", "dog", "a.b", "c d", ".git"])
TREES = st.sets(st.tuples(CLASSES, FOLDERS.map(tuple), NAMES), min_size=3, max_size=25)


def is_data(path):
    """The rule in the words of the documentation."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp")


@settings(max_examples=40, deadline=None)
@given(tree=TREES, seed=st.integers(0, 9))
def test_folders_subsets_and_shards_see_the_same_images(tree, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    root = folder / "train"
    paths = {Path(name, *folders, file) for name, folders, file in tree}
    write(root, *map(str, paths))
    write(root, "first/1.png", "first/2.png")  # classes have images, and one can be held out
    expected = {str(path): path.parts[0] for path in paths if is_data(path)}
    expected |= {"first/1.png": "first", "first/2.png": "first"}
    for name in {path.parts[0] for path in paths} - set(expected.values()) - {".git"}:
        write(root, f"{name}/0.png")
        expected[f"{name}/0.png"] = name
    classes = sorted(set(expected.values()))

    dataset = build_dataset("imagefolder", str(folder), "train")
    assert dataset.classes == classes
    names = [dataset.image_name(index) for index in range(len(dataset))]
    assert {
        name.removeprefix(f"{root}/"): classes[dataset.samples[i][1]] for i, name in enumerate(names)
    } == expected
    assert len(names) == len(expected)

    drawn = {}
    try:
        subset = draw_class_subset(root, len(classes), 1, seed)
    except DataError as error:
        assert "no training images are left" in str(error)  # in a class of one image, which was held out
    else:
        save_class_subset(subset, folder / "subset.json")
        for split in ("train", "val"):
            part = build_dataset("imagelist", str(folder / "subset.json"), split)
            assert part.classes == classes
            for index in range(len(part)):
                name = part.image_name(index).removeprefix(f"{root.resolve()}/")
                drawn[name] = classes[part.targets[index]]
        assert drawn == expected

    load_tool("make_shards").main([str(root), str(folder / "shards"), "--images-per-shard", "4"])
    shards = build_dataset("shards", str(folder / "shards"), "train")
    assert shards.classes == classes and len(shards) == len(expected)
    stored = {}
    for index in range(len(shards)):
        with shards.shards[shards._shard_of(index)].open("rb") as file:
            file.seek(shards._offsets[index])
            stored[file.read(shards._lengths[index]).decode()] = classes[shards.targets[index]]
    assert stored == expected
