"""Datasets by name: what they contain, and errors about missing or empty folders."""

import shutil
from collections import Counter

import pytest

from fbnetv3.data import DATASETS, build_dataset
from fbnetv3.data.datasets import reuse_datasets
from fbnetv3.errors import DataError, UnknownNameError, UsageError


def test_digits_hold_out_a_fifth_of_each_class():
    train, val = (build_dataset("digits", "", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (1437, 360)
    assert train.classes == val.classes == list("0123456789")
    assert all(34 <= count <= 37 for count in Counter(val.targets.tolist()).values())
    pixels = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in pixels for image in val.images) == 0


def test_digits_use_the_full_range():
    train = build_dataset("digits", "", "train")
    assert (train.images.min(), train.images.max()) == (0, 255)


def test_datasets_are_opened_once_within_a_block():
    datasets = {}
    with reuse_datasets(datasets):
        first = build_dataset("digits", "", "train")
        assert build_dataset("digits", "", "train") is first
        assert build_dataset("digits", "", "val") is not first
    assert build_dataset("digits", "", "train") is not first
    with reuse_datasets(datasets):
        assert build_dataset("digits", "", "train") is first


def test_folders(image_folder):
    dataset = build_dataset("imagefolder", str(image_folder), "train")
    assert (len(dataset), dataset.classes) == (6, ["cat", "dog"])
    image, target = dataset[5]
    assert (image.size, target) == ((50, 40), 1)
    assert dataset.image_name(5).endswith("train/dog/2.png")


def test_the_validation_folder_may_be_named_test(image_folder):
    (image_folder / "val").rename(image_folder / "test")
    assert len(build_dataset("cifar10", str(image_folder), "val")) == 2


def test_incomplete_files_of_cifar10(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="cifar-10-batches-py: is incomplete or corrupt; unpack"):
        build_dataset("cifar10", str(tmp_path), "train")


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere/train: no such folder; DATA.ROOT must be the folder"):
        build_dataset("imagefolder", str(tmp_path / "nowhere"), "train")
    with pytest.raises(UsageError, match="DATA.ROOT is not set"):
        build_dataset("imagefolder", "", "train")
    with pytest.raises(
        UsageError, match="DATA.ROOT is not set: set it to the folder that contains cifar-10"
    ):
        build_dataset("cifar10", "", "train")


def test_empty_class_folder(image_folder):
    shutil.rmtree(image_folder / "train" / "dog")
    (image_folder / "train" / "dog").mkdir()
    with pytest.raises(DataError, match="train: no image in the class folder dog"):
        build_dataset("imagefolder", str(image_folder), "train")


def test_no_class_folder(image_folder):
    shutil.rmtree(image_folder / "train")
    (image_folder / "train").mkdir()
    with pytest.raises(DataError, match="train: no class folder in it"):
        build_dataset("imagefolder", str(image_folder), "train")


def test_unknown_dataset():
    with pytest.raises(UnknownNameError, match="unknown dataset 'digit': did you mean digits?"):
        build_dataset("digit", "", "train")


def test_unknown_split():
    with pytest.raises(UsageError, match="unknown split 'test': use train or val"):
        build_dataset("digits", "", "test")


def test_custom_dataset():
    @DATASETS.register(name="mine")
    def mine(root, split):
        return build_dataset("digits", "", split)

    try:
        assert len(build_dataset("mine", "", "val")) == 360
    finally:
        DATASETS.remove("mine")
