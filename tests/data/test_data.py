"""Datasets, transforms and loaders."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from fbnetv3.data import DATASETS, CorruptImageCounter, Preprocessing, build_dataset, build_loader, train_transform
from fbnetv3.data.loader import TransformedDataset
from fbnetv3.data.samplers import EpochSampler, ShardedSampler
from fbnetv3.errors import DataError, UnknownNameError, UsageError

GREY = Preprocessing(32, 32, (0.5,), (0.5,))


@pytest.fixture
def folder(tmp_path):
    """An ImageNet-style folder of two classes, six training images and two for validation."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
                image.save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_digits_hold_out_a_fifth_of_each_class():
    train, val = (build_dataset("digits", "", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (1437, 360)
    assert train.classes == val.classes == list("0123456789")
    assert all(34 <= count <= 37 for count in Counter(val.targets.tolist()).values())
    pixels = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in pixels for image in val.images) == 0


def test_digits_use_the_whole_range():
    train = build_dataset("digits", "", "train")
    assert (train.images.min(), train.images.max()) == (0, 255)


def test_folders(folder):
    data = build_dataset("imagefolder", str(folder), "train")
    assert (len(data), data.classes) == (6, ["cat", "dog"])
    image, target = data[5]
    assert (image.size, target) == ((50, 40), 1)
    assert data.image_name(5).endswith("train/dog/2.png")


def test_validation_images_may_be_called_test(folder):
    (folder / "val").rename(folder / "test")
    assert len(build_dataset("cifar10", str(folder), "val")) == 2


def test_cifar_from_torchvisions_files(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="cifar-10-batches-py: incomplete or damaged: unpack"):
        build_dataset("cifar10", str(tmp_path), "train")


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere/train: no such folder; set DATA.ROOT"):
        build_dataset("imagefolder", str(tmp_path / "nowhere"), "train")
    with pytest.raises(UsageError, match="DATA.ROOT is not set"):
        build_dataset("imagefolder", "", "train")


def test_empty_class_folder(folder):
    shutil.rmtree(folder / "train" / "dog")
    (folder / "train" / "dog").mkdir()
    with pytest.raises(DataError, match="train: no image in the class folder dog"):
        build_dataset("imagefolder", str(folder), "train")


def test_no_class_folder(folder):
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    with pytest.raises(DataError, match="train: no class folder in it"):
        build_dataset("imagefolder", str(folder), "train")


def test_unknown_dataset():
    with pytest.raises(UnknownNameError, match="unknown dataset 'digit': did you mean digits?"):
        build_dataset("digit", "", "train")


def test_a_dataset_of_ones_own():
    @DATASETS.register(name="mine")
    def mine(root, split):
        return build_dataset("digits", "", split)

    try:
        assert len(build_dataset("mine", "", "val")) == 360
    finally:
        DATASETS.remove("mine")


@pytest.mark.parametrize("mode", ["L", "LA", "La", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "1", "F"])
def test_every_kind_of_image_becomes_rgb_or_grey(mode):
    image = Image.new("RGBA", (50, 40), (200, 100, 50)).convert("LA" if mode == "La" else "RGB").convert(mode)
    assert Preprocessing(32, 36).transform()(image).shape == (3, 32, 32)
    assert Preprocessing(32, 36, (0.0,), (1.0,)).transform()(image).shape == (1, 32, 32)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_grey_of_16_bits_is_scaled(dtype):
    pixels = np.full((40, 50), 257 * 128)
    if dtype == ">u2":
        image = Image.frombytes("I;16B", (50, 40), pixels.astype(dtype).tobytes())
    else:
        image = Image.fromarray(pixels.astype(dtype))
    grey = Preprocessing(32, 36, (0.0,), (1.0,)).transform()(image)
    assert grey.mean().item() == pytest.approx(128 / 255, abs=0.01)


def test_an_image_that_breaks_a_transform_is_named():
    def transform(image):
        raise ValueError("no\nway")

    item = TransformedDataset(build_dataset("digits", "", "val"), transform)[0, 7]
    assert item == (None, None, "digits/val[7]", 7, "digits/val[7]: cannot be read (ValueError: no way)")


def test_evaluation_resizes_the_short_side_crops_and_normalises():
    image = Image.new("RGB", (100, 50))
    image.paste((255, 255, 255), (25, 0, 75, 50))  # white in the centre
    found = Preprocessing(40, 50, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).transform()(image)
    assert found.shape == (3, 40, 40)
    assert torch.equal(found, torch.full((3, 40, 40), 2.0))


@pytest.mark.parametrize("crop", ["random_resized", "padded", "none"])
def test_training_transforms(crop):
    for policy in ("none", "autoaugment", "randaugment"):
        transform = train_transform(
            Preprocessing(24, 28), crop=crop, crop_scale=(0.5, 1), crop_padding=2, flip=True, auto_augment=policy
        )
        found = transform(Image.new("RGB", (50, 40), (255, 0, 0)))
        assert (found.shape, found.dtype) == ((3, 24, 24), torch.float32)


def test_random_erasing():
    arguments = {"crop": "none", "crop_scale": (1, 1), "crop_padding": 0, "flip": False, "random_erasing": 1.0}
    found = train_transform(Preprocessing(24, 24, (0.0,) * 3, (1.0,) * 3), **arguments)(
        Image.new("RGB", (24, 24), "red")
    )
    assert 0 < (found[0] == 0).float().mean() < 0.5


def batches(workers=0, epoch=0, seed=0, n=96):
    data = build_dataset("digits", "", "train")
    data.images, data.targets = data.images[:n], data.targets[:n]
    transform = train_transform(GREY, crop="padded", crop_scale=(0.5, 1), crop_padding=4, flip=True)
    loader = build_loader(data, transform, batch_size=32, training=True, workers=workers, seed=seed)
    loader.sampler.epoch = epoch
    return [batch.images for batch in loader]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches_depend_on_seed_and_epoch_alone():
    first = batches()
    torch.manual_seed(17)
    assert equal(first, batches())
    assert equal(first, batches(workers=2))
    assert not equal(first, batches(epoch=1))
    assert not equal(first, batches(seed=1))


def test_augmentation_leaves_the_randomness_of_training_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    batches()
    assert torch.equal(torch.rand(4), expected)


def test_every_image_comes_once_an_epoch():
    assert sorted(index for _, index in EpochSampler(100, 10, seed=4)) == list(range(100))
    assert len(set(EpochSampler(100, 30, seed=4))) == len(EpochSampler(100, 30)) == 90
    assert [index for _, index in ShardedSampler(5)] == list(range(5))


def test_an_epoch_goes_on_in_the_middle():
    sampler = EpochSampler(100, 10, seed=4)
    whole = list(sampler)
    sampler.start = 4
    assert list(sampler) == whole[40:]


@pytest.mark.parametrize("start", [0, 2])
def test_several_processes_share_the_batches_of_one(start):
    samplers = [EpochSampler(50, 12, 4), *(EpochSampler(50, 12, 4, rank, 3) for rank in range(3))]
    for sampler in samplers:
        sampler.epoch, sampler.start = 1, start
    whole, *parts = (list(sampler) for sampler in samplers)
    for batch in range(4 - start):
        shared = [index for part in parts for index in part[4 * batch : 4 * batch + 4]]
        assert shared == whole[12 * batch : 12 * batch + 12]


@pytest.mark.parametrize("length", [0, 1, 2, 7, 9])
def test_several_processes_evaluate_every_image_once(length):
    parts = [list(ShardedSampler(length, rank, 3)) for rank in range(3)]
    assert sorted(index for part in parts for _, index in part) == list(range(length))


@pytest.mark.parametrize(("batch", "message"), [(5, "BATCH_SIZE 5 over 3 processes"), (8, "no multiple of the 3")])
def test_a_batch_that_processes_cannot_share(batch, message):
    data = build_dataset("digits", "", "val")
    with pytest.raises(UsageError, match=message):
        build_loader(data, GREY.transform(), batch_size=batch, training=True, world_size=3)


def test_evaluation_takes_every_image_in_order():
    data = build_dataset("digits", "", "val")
    loader = build_loader(data, GREY.transform(), batch_size=100, training=False)
    assert torch.cat([batch.targets for batch in loader]).tolist() == data.targets.tolist()


def test_a_batch_of_one_trains_nothing():
    data = build_dataset("digits", "", "val")
    with pytest.raises(UsageError, match="SOLVER.BATCH_SIZE 1 cannot train"):
        build_loader(data, GREY.transform(), batch_size=1, training=True)


def test_more_padding_than_image():
    with pytest.raises(UsageError, match="INPUT.CROP_PADDING 33 is more than the input of 32 pixels"):
        train_transform(GREY, crop="padded", crop_scale=(1, 1), crop_padding=33, flip=False)


def test_too_few_images():
    data = build_dataset("digits", "", "val")
    with pytest.raises(DataError, match="360 training images are less than one batch of 500"):
        build_loader(data, GREY.transform(), batch_size=500, training=True)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_left_out_and_named(folder, damage, workers):
    path = folder / "train" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:200] if damage is None else damage)
    data = build_dataset("imagefolder", str(folder), "train")
    loader = build_loader(data, Preprocessing(16, 16).transform(), batch_size=6, training=False, workers=workers)
    (batch,) = loader
    assert batch.images.shape == (5, 3, 16, 16)
    assert len(batch.corrupt) == 1
    assert "cat/1.png: corrupt image" in batch.corrupt[0]


def test_damaged_images_are_counted_once_each_up_to_a_limit():
    counter = CorruptImageCounter(2)
    counter.add(["a", "b"])
    counter.add(["a"])
    with pytest.raises(DataError, match="a; b; c and 1 more: mend or remove, .*DATA.MAX_CORRUPT"):
        counter.add(["c", "d"])


def test_items_say_what_is_damaged(folder):
    data = build_dataset("imagefolder", str(folder), "train")
    (folder / "train" / "cat" / "0.png").unlink()
    image, target, name, number, damage = TransformedDataset(data, GREY.transform())[0, 0]
    assert (image, target, name, number) == (None, None, data.image_name(0), 0)
    assert damage.endswith("0.png: no such file")
