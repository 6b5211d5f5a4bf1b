"""Crops and flips of batches: torchvision's pixels, the same probabilities as for single images, and reproducible."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2_contingency, chisquare
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

from fbnetv3.data import Preprocessing, train_transform
from fbnetv3.data.batches.batch_augmentation import BatchAugmentation, crop_and_flip, find_unsupported

AUGMENTATION = BatchAugmentation(padding=4, flip=True, seed=5)
ZEROS = torch.zeros(20_000, dtype=torch.long)


def draw(count=20_000, epoch=0, augmentation=AUGMENTATION, repeats=ZEROS):
    return augmentation.draw(epoch, torch.arange(count), repeats[:count])


def test_crops_and_flips_are_torchvisions():
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    padded = F.pad(images, [4] * 4)
    indices = torch.tensor([5, 0, 0, 3])
    parameters = torch.tensor([[0, 8, 4, 3], [0, 8, 4, 7], [0, 0, 1, 1]])
    crops = crop_and_flip(padded.permute(0, 2, 3, 1), indices, parameters, 8)
    assert crops.is_contiguous(memory_format=torch.channels_last)
    for crop, index, (top, left, flip) in zip(crops, indices, parameters.T.tolist(), strict=True):
        expected = functional.crop(padded[index], top, left, 8, 8)
        assert torch.equal(crop, functional.horizontal_flip(expected) if flip else expected)


def test_an_image_is_augmented_alike_in_any_batch():
    parameters = draw(100)
    order = torch.randperm(100)
    assert torch.equal(AUGMENTATION.draw(0, order, ZEROS[:100]), parameters[:, order])
    parts = [AUGMENTATION.draw(0, part, ZEROS[: len(part)]) for part in torch.arange(100).split(7)]
    assert torch.equal(torch.cat(parts, 1), parameters)


def test_seeds_epochs_and_repeats_have_augmentations_of_their_own():
    others = [
        draw(epoch=1),
        draw(augmentation=BatchAugmentation(padding=4, flip=True, seed=6)),
        draw(repeats=ZEROS + 1),
    ]
    for other in others:
        # Places agree by chance in one of nine images, flips in one of two
        agreement = (draw() == other).float().mean(1)
        assert agreement.tolist() == pytest.approx([1 / 9, 1 / 9, 1 / 2], abs=0.02)


def test_without_padding_and_flips_nothing_changes():
    assert not draw(augmentation=BatchAugmentation(seed=1)).any()


def test_all_places_and_flips_are_equally_likely_and_independent():
    top, left, flip = draw()
    for values, count in ((top, 9), (left, 9), (flip, 2)):
        assert chisquare(np.bincount(values, minlength=count)).pvalue > 0.001
    next_epoch = draw(epoch=1)
    pairs = [(top, left), (top, flip), (left, flip), (top, next_epoch[0]), (top[1:], top[:-1])]
    for first, second in pairs:
        table = np.zeros((9, 9))
        np.add.at(table, (first.numpy(), second.numpy()), 1)
        assert chi2_contingency(table[:, table.any(0)]).pvalue > 0.001


def test_outcomes_are_as_likely_as_those_of_the_transform_of_single_images():
    """Of an image with four different pixels, every crop and flip can be told from the others."""
    image = Image.fromarray(np.array([[50, 100], [150, 200]], dtype=np.uint8))
    transform = train_transform(
        Preprocessing(2, 2, (0.5,), (0.5,)),
        crop="padded",
        crop_scale=(1, 1),
        crop_padding=1,
        flip=True,
        normalize=False,
    )
    torch.manual_seed(0)
    single = Counter(tuple(transform(image).flatten().tolist()) for _ in range(4000))
    padded = F.pad(torch.tensor([[50, 100], [150, 200]], dtype=torch.uint8), [1] * 4)[None, :, :, None]
    parameters = draw(4000, augmentation=BatchAugmentation(padding=1, flip=True))
    crops = crop_and_flip(padded, ZEROS[:4000], parameters, 2)
    batched = Counter(tuple(crop) for crop in crops.flatten(1).tolist())
    assert set(batched) == set(single)
    table = [[counts[outcome] for outcome in single] for counts in (single, batched)]
    assert chi2_contingency(table).pvalue > 0.001


def test_what_cannot_be_augmented_in_batches():
    plain = {"crop": "padded", "color_jitter": 0.0, "auto_augment": "none", "random_erasing": 0.0}
    assert find_unsupported(**plain) is None
    assert find_unsupported(**{**plain, "crop": "none"}) is None
    assert find_unsupported(**{**plain, "crop": "random_resized"}) == "INPUT.CROP random_resized"
    assert find_unsupported(**{**plain, "color_jitter": 0.1}) == "INPUT.COLOR_JITTER 0.1"
    assert find_unsupported(**{**plain, "auto_augment": "randaugment"}) == "INPUT.AUTO_AUGMENT randaugment"
    assert find_unsupported(**{**plain, "random_erasing": 0.2}) == "INPUT.RANDOM_ERASING 0.2"


@pytest.mark.gpu
def test_a_gpu_draws_and_crops_the_same():
    device = torch.device("cuda", 0)
    indices = torch.arange(64)
    parameters = draw(64)
    assert torch.equal(AUGMENTATION.draw(0, indices.to(device), ZEROS[:64].to(device)).cpu(), parameters)
    padded = torch.randint(256, (64, 40, 40, 3), dtype=torch.uint8)
    crops = crop_and_flip(padded.to(device), indices.to(device), parameters.to(device), 32)
    assert torch.equal(crops.cpu(), crop_and_flip(padded, indices, parameters, 32))
