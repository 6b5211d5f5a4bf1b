"""Training batches depend on seed and step only, with every augmentation and sampler; how often images are used."""

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from fbnetv3.detection.data.detection_loaders import build_train_loader
from fbnetv3.detection.data.image_sampling import index_stream
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.errors import UsageError

SECTION = "INPUT.AUGMENTATION"
AUGMENTED = [f"{SECTION}.LARGE_SCALE_JITTER", "[0.5, 1.5]", f"{SECTION}.MOSAIC", "0.5"]
AUGMENTED += [
    f"{SECTION}.PHOTOMETRIC_DISTORTION",
    "0.5",
    f"{SECTION}.HUE",
    "0.1",
    f"{SECTION}.LIGHTING",
    "25.5",
]
AUGMENTED += [f"{SECTION}.BRIGHTNESS", "[0.8, 1.2]", f"{SECTION}.CONTRAST", "[0.8, 1.2]"]
AUGMENTED += ["INPUT.CROP.ENABLED", "True", "DATALOADER.SAMPLER_TRAIN", "ClassBalancedTrainingSampler"]


def batches(config, overrides, start=0, rank=0, world_size=1, stop=4):
    """Return the batches of the steps from `start` to `stop` as lists of image and boxes."""
    loader = build_train_loader(
        load_detection_config(config, overrides), 5, SimpleNamespace(rank=rank, size=world_size)
    )
    loader.batch_sampler.start = start
    return [
        [(x["image"], x["instances"].gt_boxes.tensor) for x in batch]
        for batch in itertools.islice(loader, stop - start)
    ]


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for step, expected_step in zip(actual, expected, strict=True):
        for tensors, expected_tensors in zip(step, expected_step, strict=True):
            assert all(map(torch.equal, tensors, expected_tensors))


def test_augmented_batches_depend_on_seed_and_step_only(digits_config):
    """Not on where the run resumed, nor on the number of worker processes and training processes."""
    expected = batches(digits_config, AUGMENTED)
    assert len({image.sum().item() for step in expected for image, _ in step}) == 8
    torch.manual_seed(7)
    assert_same(batches(digits_config, AUGMENTED, start=2), expected[2:])
    assert_same(batches(digits_config, [*AUGMENTED, "DATALOADER.NUM_WORKERS", "2"]), expected)
    for rank in (0, 1):
        share = batches(digits_config, AUGMENTED, rank=rank, world_size=2)
        assert_same(share, [step[rank : rank + 1] for step in expected])


def sampling_config(**values):
    return SimpleNamespace(DATALOADER=SimpleNamespace(**values))


def image_with(*classes, crowds=()):
    boxes = [{"category_id": index} for index in classes]
    return {"annotations": [*boxes, *({"category_id": index, "iscrowd": 1} for index in crowds)]}


# Class 0 is in 80 of 100 images, class 1 in 20, class 2 in 5, together with class 1
IMAGES = [image_with(0, 0)] * 80 + [image_with(1)] * 15 + [image_with(1, 2)] * 5


def use_counts(epoch_size, cfg, images=IMAGES):
    """Return how often the three kinds of images are used per epoch, on average over 200 epochs."""
    stream = itertools.islice(index_stream(cfg, images, 0)(), 200 * epoch_size)
    counts = Counter(stream)
    kinds = (range(80), range(80, 95), range(95, 100))
    return [sum(counts[i] for i in kind) / len(kind) / 200 for kind in kinds]


def test_uniform_sampling_uses_each_image_once():
    assert use_counts(100, sampling_config(SAMPLER_TRAIN="TrainingSampler")) == [1, 1, 1]


def test_class_balanced_sampling():
    """Images of class 1 are used 80 / 20 = 4 times, those of class 2 80 / 5 = 16 times: 80 + 60 + 80 images."""
    cfg = sampling_config(SAMPLER_TRAIN="ClassBalancedTrainingSampler")
    assert use_counts(220, cfg) == pytest.approx([1, 4, 16], rel=0.02)


def test_repeat_factor_sampling():
    """With a threshold of 0.2, images of class 2 are used sqrt(0.2 / 0.05) = 2 times."""
    cfg = sampling_config(
        SAMPLER_TRAIN="RepeatFactorTrainingSampler", REPEAT_THRESHOLD=0.2, REPEAT_SQRT=True
    )
    assert use_counts(105, cfg) == pytest.approx([1, 1, 2], rel=0.02)


def test_crowds_are_not_counted():
    """Class 1, only in crowds, is never learned, so its images are not repeated."""
    images = [image_with(0)] * 95 + [image_with(0, crowds=[1])] * 5
    cfg = sampling_config(SAMPLER_TRAIN="ClassBalancedTrainingSampler")
    assert use_counts(100, cfg, images) == [1, 1, 1]


def test_sampling_starts_anew_at_each_call():
    stream = index_stream(sampling_config(SAMPLER_TRAIN="ClassBalancedTrainingSampler"), IMAGES, 3)
    assert list(itertools.islice(stream(), 500)) == list(itertools.islice(stream(), 500))


def test_invalid_thresholds_are_refused():
    cfg = sampling_config(
        SAMPLER_TRAIN="RepeatFactorTrainingSampler", REPEAT_THRESHOLD=2.0, REPEAT_SQRT=True
    )
    with pytest.raises(UsageError, match=r"REPEAT_THRESHOLD 2.0 must be in \[0, 1\]"):
        index_stream(cfg, IMAGES, 0)
