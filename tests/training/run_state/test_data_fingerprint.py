"""Fingerprints of datasets: what has changed is said, in counts by class."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from fbnetv3.data.classes.class_matching import RelabeledDataset
from fbnetv3.data.datasets import ArrayDataset
from fbnetv3.training.run_state.data_fingerprint import (
    data_fingerprint,
    describe_change,
    fingerprint_of_names,
)

CLASSES = ["cat", "dog", "owl"]


def dataset(targets, classes=CLASSES, name="mine"):
    return ArrayDataset(name, np.zeros((len(targets), 2, 2), np.uint8), np.array(targets), classes)


def test_what_a_fingerprint_holds():
    fingerprint = data_fingerprint(dataset([0, 1, 1]))
    assert fingerprint["images"] == 3 and fingerprint["by_class"] == {"cat": 1, "dog": 2}
    assert len(fingerprint["sha256"]) == len(fingerprint["labels"]) == 64


def test_the_order_of_the_classes_does_not_matter():
    saved = data_fingerprint(dataset([0, 1, 1]))
    reordered = dataset([2, 0, 0], ["dog", "owl", "cat"])
    assert describe_change(saved, data_fingerprint(reordered)) == ""
    assert describe_change(saved, data_fingerprint(RelabeledDataset(reordered, CLASSES, [1, 2, 0]))) == ""


def test_other_labels_of_the_same_files():
    saved = data_fingerprint(dataset([0, 1, 1]))
    change = describe_change(saved, data_fingerprint(dataset([0, 1, 2])))
    assert change == "the same files with other labels; images by class: dog 2 -> 1, owl 0 -> 1"
    # Two labels are exchanged
    assert (
        describe_change(saved, data_fingerprint(dataset([1, 0, 1]))) == "the same files with other labels"
    )


def test_other_files():
    change = describe_change(data_fingerprint(dataset([0, 1, 1])), data_fingerprint(dataset([0, 1])))
    assert change == "3 in the checkpoint; images by class: dog 2 -> 1"


def test_older_fingerprints_have_no_labels():
    current = data_fingerprint(dataset([0, 1, 1]))
    saved = {key: current[key] for key in ("images", "sha256")}
    assert describe_change(saved, current) == ""
    assert describe_change({"images": 4, "sha256": ""}, current) == "4 in the checkpoint"


def test_several_labels_per_image():
    one, other = dataset(np.eye(3)), dataset(np.eye(3)[::-1])
    assert data_fingerprint(one)["by_class"] == {"cat": 1, "dog": 1, "owl": 1}
    assert (
        describe_change(data_fingerprint(one), data_fingerprint(other))
        == "the same files with other labels"
    )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("images/cats/1.jpg", "cats/1.jpg"),
        ("cats/1.jpg", "cats/1.jpg"),
        ("1.jpg", "1.jpg"),
        ("/images/cats/../1.jpg", "../1.jpg"),
        ("images/cats//1.jpg", "cats/1.jpg"),
        ("images/cats/./1.jpg", "cats/1.jpg"),
        ("/1.jpg", "//1.jpg"),
        ("images/cats/", "images/cats"),
    ],
)
def test_folder_and_name_of_an_image(path, expected):
    """As pathlib divides a path."""
    assert "/".join(Path(path).parts[-2:]) == expected
    digest = hashlib.sha256(f"{expected}\n".encode()).hexdigest()
    assert fingerprint_of_names([path]) == {"images": 1, "sha256": digest}
