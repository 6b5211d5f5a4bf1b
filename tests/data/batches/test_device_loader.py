"""Images that a device keeps: the batches of the ordinary loader, augmented there."""

import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.data import Preprocessing, build_dataset, build_loader
from fbnetv3.data.batches.batch_augmentation import BatchAugmentation
from fbnetv3.data.batches.device_loader import DeviceLoader
from fbnetv3.errors import UsageError
from fbnetv3.training import train
from fbnetv3.training.devices.kept_images import is_kept_on_device

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
GRAY = Preprocessing(8, 8, (0.5,), (0.5,))
AUGMENTATION = BatchAugmentation(padding=2, flip=True, seed=3)
DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"


class CountingDataset:
    """Some digits; counts how often they are read."""

    def __init__(self, split="train", length=96):
        self.digits = build_dataset("digits", "", split)
        self.classes = self.digits.classes
        self.length = length
        self.reads = 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.reads += 1
        return self.digits[index]

    def image_name(self, index):
        return self.digits.image_name(index)


def make_loader(dataset=None, augmentation=AUGMENTATION, training=True, batch_size=32, **options):
    dataset = dataset or CountingDataset()
    transform = GRAY.transform(normalize=False)
    loader = build_loader(
        dataset, transform, batch_size=batch_size, training=training, preprocessing=GRAY, **options
    )
    return DeviceLoader(loader, GRAY, CPU, augmentation)


def by_image(*loaders):
    """Return the pixels of one epoch of loaders by image."""
    return {
        int(index): pixels
        for loader in loaders
        for batch in loader
        for index, pixels in zip(batch.indices, batch.images, strict=True)
    }


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[index], b[index]) for index in a)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_batches_are_those_of_the_ordinary_loader(training, workers):
    options = {"batch_size": 36, "training": training, "preprocessing": GRAY, "workers": workers}
    ordinary = build_loader(CountingDataset(), GRAY.transform(normalize=False), **options)
    kept = DeviceLoader(ordinary, GRAY, CPU)
    assert len(kept) == len(ordinary)
    for batch, expected in zip(kept, ordinary, strict=True):
        assert batch.indices.tolist() == expected.indices.tolist()
        assert batch.names == expected.names
        for tensor, other in zip(
            batch.to(CPU, torch.channels_last), expected.to(CPU, torch.channels_last), strict=True
        ):
            assert torch.equal(tensor, other)


def test_images_are_read_once():
    dataset = CountingDataset()
    loader = make_loader(dataset)
    assert dataset.reads == 0
    by_image(loader), by_image(loader)
    assert dataset.reads == 96


def test_images_depend_neither_on_the_batch_size_nor_on_the_processes():
    images = by_image(make_loader())
    assert len(images) == 96
    assert equal(images, by_image(make_loader(batch_size=48)))
    assert equal(images, by_image(*(make_loader(rank=rank, world_size=2) for rank in range(2))))


def test_epochs_differ_and_repeat():
    loader = make_loader()
    first = by_image(loader)
    loader.sampler.epoch = 1
    assert not equal(first, by_image(loader))
    loader.sampler.epoch = 0
    assert equal(first, by_image(loader))


def test_an_epoch_is_continued_after_its_first_batches():
    loader = make_loader()
    batches = list(loader)
    loader.sampler.first_batch = 2
    (batch,) = loader
    assert torch.equal(batch.images, batches[2].images)


def test_repeated_images_are_augmented_each_in_its_own_way():
    loader = make_loader(order=lambda generator: torch.zeros(96, dtype=torch.long))
    (batch, *_) = loader
    assert len(batch.images.flatten(1).unique(dim=0)) > 20


def test_the_first_images():
    loader = make_loader()
    batch = loader.read_first(5)
    expected = next(iter(loader))
    assert torch.equal(batch.images, expected.images[:5])
    assert batch.names == expected.names[:5] and torch.equal(batch.targets, expected.targets[:5])


def test_corrupt_images_are_left_out_and_named(image_folder):
    for name in ("cat/1.png", "dog/0.png"):
        (image_folder / "train" / name).write_bytes(b"nonsense")
    dataset = build_dataset("imagefolder", str(image_folder), "train")
    rgb = Preprocessing(16, 16)
    options = {"batch_size": 4, "training": False, "preprocessing": rgb}
    ordinary = build_loader(dataset, rgb.transform(normalize=False), **options)
    for batch, expected in zip(DeviceLoader(ordinary, rgb, CPU), ordinary, strict=True):
        assert batch.errors == expected.errors
        assert torch.equal(batch.images, expected.images) and batch.names == expected.names
        assert torch.equal(batch.targets, expected.targets)


def test_images_with_several_labels():
    class Labeled(CountingDataset):
        def __getitem__(self, index):
            image, digit = super().__getitem__(index)
            return image, torch.tensor([digit >= 5, digit % 2 == 0]).float()

    dataset = Labeled()
    (batch, *_) = make_loader(dataset)
    expected = torch.stack([dataset[index][1] for index in batch.indices])
    assert torch.equal(batch.targets, expected)


def config(*overrides):
    return load_config(DIGITS, overrides)


@pytest.mark.parametrize(
    ("overrides", "device", "num_images", "expected"),
    [
        ([], GPU, 1797, True),
        ([], CPU, 1797, False),
        (["DATA.ON_DEVICE", "always"], CPU, 1797, True),
        (["DATA.ON_DEVICE", "never"], GPU, 1797, False),
        (["INPUT.AUTO_AUGMENT", "randaugment"], GPU, 1797, False),
        # Gray images of 38 x 38 pixels with their padding, as many as 2 GiB hold
        ([], GPU, 2**31 // 38**2, True),
        ([], GPU, 2**31 // 38**2 + 1, False),
        (["DATA.ON_DEVICE", "always"], GPU, 2**31, True),
        (["INPUT.CROP", "none"], GPU, 2**31 // 32**2, True),
        (["INPUT.CROP", "none"], GPU, 2**31 // 32**2 + 1, False),
    ],
)
def test_small_datasets_are_kept_on_gpus(overrides, device, num_images, expected):
    preprocessing = Preprocessing(32, 32, (0.5,), (0.5,))
    assert is_kept_on_device(config(*overrides), device, preprocessing, 32, num_images) is expected


def test_augmentations_that_a_device_lacks_are_an_error_where_it_is_asked_for():
    cfg = config("DATA.ON_DEVICE", "always", "INPUT.RANDOM_ERASING", "0.5")
    with pytest.raises(
        UsageError, match=r"DATA\.ON_DEVICE always does not work with INPUT\.RANDOM_ERASING 0\.5"
    ):
        is_kept_on_device(cfg, CPU, GRAY, 8, 10)


def test_cached_logits_belong_to_other_random_numbers():
    teacher = ["DISTILL.ARCH", "fbnetv3_digits", "DISTILL.WEIGHTS", "x.pth", "DISTILL.CACHE", "logits"]
    assert not is_kept_on_device(config(*teacher), GPU, GRAY, 8, 10)
    with pytest.raises(UsageError, match=r"DATA\.ON_DEVICE always does not work with cached logits"):
        config(*teacher, "DATA.ON_DEVICE", "always")


def test_a_run_does_not_depend_on_the_workers(tmp_path):
    keys = "DATA.ON_DEVICE always SOLVER.EPOCHS 2 SOLVER.WARMUP_EPOCHS 0 INPUT.RESOLUTION 16 SOLVER.BATCH_SIZE 256"
    curves = [
        train(config(*keys.split(), "DATA.WORKERS", workers, "OUTPUT_DIR", str(tmp_path / workers)))
        for workers in ("0", "1")
    ]
    assert curves[0] == curves[1]
    assert curves[0][-1]["images"] == 360
