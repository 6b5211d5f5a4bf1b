"""Loaders: reproducible batches, and corrupt images that are skipped and named."""

import signal
import subprocess
import sys
import time

import pytest
import torch

from fbnetv3.data import CorruptImageCounter, Preprocessing, build_dataset, build_loader, train_transform
from fbnetv3.data import loader as loader_module
from fbnetv3.data.loader import TransformedDataset, init_worker
from fbnetv3.errors import DataError, UsageError

GRAY = Preprocessing(32, 32, (0.5,), (0.5,))


def batches(workers=0, epoch=0, seed=0, count=96):
    """Return the images of one epoch over some of the digits, augmented."""
    dataset = build_dataset("digits", "", "train")
    dataset.images = dataset.images[:count]
    dataset.targets = dataset.targets[:count]
    transform = train_transform(GRAY, crop="padded", crop_scale=(0.5, 1), crop_padding=4, flip=True)
    loader = build_loader(dataset, transform, batch_size=32, training=True, workers=workers, seed=seed)
    loader.sampler.epoch = epoch
    return [batch.images for batch in loader]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches_depend_only_on_seed_and_epoch():
    first = batches()
    torch.manual_seed(17)
    assert equal(first, batches())
    assert equal(first, batches(workers=2))
    assert not equal(first, batches(epoch=1))
    assert not equal(first, batches(seed=1))


def test_augmentation_keeps_the_global_random_state():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    batches()
    assert torch.equal(torch.rand(4), expected)


def test_evaluation_takes_every_image_in_order():
    dataset = build_dataset("digits", "", "val")
    loader = build_loader(dataset, GRAY.transform(), batch_size=100, training=False)
    assert torch.cat([batch.targets for batch in loader]).tolist() == dataset.targets.tolist()


def test_workers_serve_all_evaluations_of_a_run():
    loader = build_loader(
        build_dataset("digits", "", "val"), GRAY.transform(), batch_size=100, training=False, workers=2
    )
    batches = [[batch.images for batch in loader] for _ in range(2)]
    pids = {worker.pid for worker in loader._iterator._workers}
    batches.append([batch.images for batch in loader])
    assert pids == {worker.pid for worker in loader._iterator._workers}
    assert equal(batches[0], batches[1]) and equal(batches[0], batches[2])


def test_workers_serve_another_evaluation_after_one_that_was_left_early():
    loader = build_loader(
        build_dataset("digits", "", "val"), GRAY.transform(), batch_size=50, training=False, workers=1
    )
    next(iter(loader))
    assert [len(batch.targets) for batch in loader] == [50] * 7 + [10]


def test_uint8_batches_are_normalized_on_the_device():
    dataset = build_dataset("digits", "", "val")
    transform = GRAY.transform(normalize=False)
    loader = build_loader(dataset, transform, batch_size=360, training=False, preprocessing=GRAY)
    (batch,) = loader
    assert batch.images.dtype == torch.uint8 and list(batch.indices) == list(range(360))
    images, targets = batch.to(torch.device("cpu"), torch.channels_last)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images[5], GRAY.transform()(dataset[5][0]))
    assert torch.equal(targets, batch.targets)


@pytest.mark.parametrize(
    ("batch", "processes", "message"),
    [
        (1, 1, "SOLVER.BATCH_SIZE 1 must be at least 2$"),
        (3, 3, "SOLVER.BATCH_SIZE 3 must be at least 6 and a multiple of 3, the number of processes"),
        (8, 3, "SOLVER.BATCH_SIZE 8 must be at least 6 and a multiple of 3, the number of processes"),
    ],
)
def test_a_batch_that_processes_cannot_share(batch, processes, message):
    """BatchNorm needs two images in each process."""
    dataset = build_dataset("digits", "", "val")
    with pytest.raises(UsageError, match=message):
        build_loader(dataset, GRAY.transform(), batch_size=batch, training=True, world_size=processes)


def test_fewer_images_than_one_batch():
    dataset = build_dataset("digits", "", "val")
    with pytest.raises(
        DataError, match="SOLVER.BATCH_SIZE 500 must be at most 360, the number of training images"
    ):
        build_loader(dataset, GRAY.transform(), batch_size=500, training=True)


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_skipped_and_named(image_folder, content, workers):
    path = image_folder / "train" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    dataset = build_dataset("imagefolder", str(image_folder), "train")
    loader = build_loader(
        dataset, Preprocessing(16, 16).transform(), batch_size=6, training=False, workers=workers
    )
    (batch,) = loader
    assert batch.images.shape == (5, 3, 16, 16)
    assert len(batch.errors) == 1
    assert "cat/1.png: corrupt image" in batch.errors[0]


def test_corrupt_images_are_counted_once_each_up_to_a_limit():
    counter = CorruptImageCounter(2)
    counter.add(["a", "b"])
    counter.add(["a"])
    with pytest.raises(DataError, match="a; b; c and 1 more: repair or remove them, .*DATA.MAX_CORRUPT"):
        counter.add(["c", "d"])


def test_samples_of_missing_images(image_folder):
    dataset = build_dataset("imagefolder", str(image_folder), "train")
    (image_folder / "train" / "cat" / "0.png").unlink()
    sample = TransformedDataset(dataset, GRAY.transform())[0, 0]
    assert (sample.pixels, sample.target, sample.image_index) == (None, None, 0)
    assert sample.error == f"{dataset.image_name(0)}: no such file"


def test_an_image_on_which_the_transform_fails_is_named():
    def transform(image):
        raise ValueError("no\nway")

    sample = TransformedDataset(build_dataset("digits", "", "val"), transform)[0, 7]
    assert sample == (None, None, 7, "digits/val[7]: cannot be read (ValueError: no way)")


def test_views_repeat():
    def transform(image):
        return torch.rand(2)

    dataset = TransformedDataset(build_dataset("digits", "", "val"), transform, views=2)
    first, second, third = (dataset[epoch, 3].pixels for epoch in range(3))
    assert torch.equal(first, third) and not torch.equal(first, second)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="macOS cannot tell who sent a signal")
def start_slowly(number):
    time.sleep(0.5)
    init_worker(number)


def test_sigterm_does_not_end_workers_that_are_starting(monkeypatch):
    monkeypatch.setattr(loader_module, "init_worker", start_slowly)
    dataset = build_dataset("digits", "", "val")
    loader = build_loader(dataset, GRAY.transform(), batch_size=90, training=False, workers=1)
    iterator = iter(loader)
    subprocess.run(["kill", str(loader._iterator._workers[0].pid)], check=True)
    assert len(list(iterator)) == 4


def test_workers_ignore_sigterm_but_not_of_the_main_process_at_exit():
    """A script that keeps its loader in a global variable ends; a scheduler's SIGTERM does not end workers."""
    script = """
import os, signal
from multiprocessing import active_children
from fbnetv3.data import build_loader, build_dataset
from torchvision.transforms.functional import pil_to_tensor

loader = build_loader(build_dataset("digits", "", "val"), pil_to_tensor, batch_size=8, training=True, workers=2)
batches = iter(loader)
next(batches)
pids = " ".join(str(child.pid) for child in active_children())
os.system(f"kill -TERM {pids}; kill -INT {pids}")
print(sum(len(batch.targets) for batch in batches) + 8)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "360\n", "")
