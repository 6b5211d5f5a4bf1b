"""Batches: what is pinned and pickled, and names that are looked up only when needed."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from fbnetv3.data import Batch, Preprocessing, build_dataset, build_loader
from fbnetv3.data.batches.batch import Sample, collate_samples

GRAY = Preprocessing(8, 8, (0.5,), (0.5,))


def make_loader(workers=0):
    dataset = build_dataset("digits", "", "val")
    transform = GRAY.transform(normalize=False)
    return build_loader(
        dataset, transform, batch_size=90, training=False, workers=workers, preprocessing=GRAY
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_have_the_names_of_the_datasets_images(workers):
    batches = list(make_loader(workers))
    assert [name for batch in batches for name in batch.names] == [f"digits/val[{i}]" for i in range(360)]
    assert all(batch.indices.dtype == np.int64 for batch in batches)


def test_a_batch_without_a_dataset_numbers_its_images():
    assert Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2), [7, 3]).names == ["image 7", "image 3"]


def test_only_tensors_are_pinned(monkeypatch):
    """DataLoader's thread would otherwise visit each name and number while it holds the interpreter's lock."""
    pinned = []

    def record(tensor):
        pinned.append(tensor.shape)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", record)
    batch = next(iter(make_loader()))
    copy = pin_memory(batch)
    assert pinned == [(90, 1, 8, 8), (90,)]
    assert torch.equal(copy.images, batch.images) and torch.equal(copy.targets, batch.targets)
    assert copy.images is not batch.images and copy.indices is batch.indices
    assert copy.names == batch.names and copy.preprocessing is GRAY


def test_a_pickled_batch_takes_its_names_along_but_not_the_dataset():
    batch = next(iter(make_loader()))
    pickled = pickle.dumps(batch)
    assert len(pickled) < batch.images.numel() + 90 * 8 + 90 * 40
    copy = pickle.loads(pickled)
    assert copy.names == batch.names and copy.errors == batch.errors
    assert torch.equal(copy.images, batch.images)


def test_an_image_that_occurs_twice_is_pickled():
    batch = Batch(torch.zeros(2, 1, 8, 8), torch.zeros(2), [1, 1], image_name=["a", "b"].__getitem__)
    assert pickle.loads(pickle.dumps(batch)).names == ["b", "b"]


def test_samples_without_errors_are_collated():
    samples = [
        Sample(torch.zeros(1, 2, 2), 4, 10),
        Sample(None, None, 11, "b.png: corrupt image"),
        Sample(torch.ones(1, 2, 2), 5, 12),
    ]
    batch = collate_samples(GRAY, samples)
    assert batch.images[:, 0, 0, 0].tolist() == [0, 1]
    assert batch.targets.tolist() == [4, 5]
    assert batch.indices.tolist() == [10, 12]
    assert batch.errors == ["b.png: corrupt image"]


def test_copying_keeps_bytes_and_to_normalizes():
    batch = next(iter(make_loader()))
    copy = batch.copy_to(torch.device("cpu"))
    assert copy.images.dtype == torch.uint8
    images, targets = copy.to(torch.device("cpu"), torch.contiguous_format)
    assert torch.equal(images, GRAY.normalize(batch.images)) and torch.equal(targets, batch.targets)
