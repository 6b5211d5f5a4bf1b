"""Preprocessing and augmentation of single images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fbnetv3.data import AUGMENTATIONS, CROPS, Preprocessing, train_transform
from fbnetv3.errors import UnknownNameError, UsageError

GRAY = Preprocessing(32, 32, (0.5,), (0.5,))
PLAIN = {"crop": "none", "crop_scale": (1, 1), "crop_padding": 0, "flip": False}


@pytest.mark.parametrize("mode", ["L", "LA", "La", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "1"])
def test_images_of_all_modes_become_rgb_or_gray(mode):
    image = (
        Image.new("RGBA", (50, 40), (200, 100, 50)).convert("LA" if mode == "La" else "RGB").convert(mode)
    )
    assert Preprocessing(32, 36).transform()(image).shape == (3, 32, 32)
    assert Preprocessing(32, 36, (0.0,), (1.0,)).transform()(image).shape == (1, 32, 32)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_gray_of_16_bits_is_scaled(dtype):
    pixels = np.full((40, 50), 257 * 128)
    if dtype == ">u2":
        image = Image.frombytes("I;16B", (50, 40), pixels.astype(dtype).tobytes())
    else:
        image = Image.fromarray(pixels.astype(dtype))
    gray = Preprocessing(32, 36, (0.0,), (1.0,)).transform()(image)
    assert gray.mean().item() == pytest.approx(128 / 255, abs=0.01)


def test_evaluation_resizes_the_short_side_crops_and_normalizes():
    image = Image.new("RGB", (100, 50))
    image.paste((255, 255, 255), (25, 0, 75, 50))  # white in the center
    pixels = Preprocessing(40, 50, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).transform()(image)
    assert pixels.shape == (3, 40, 40)
    assert torch.equal(pixels, torch.full((3, 40, 40), 2.0))


def test_normalization_may_follow_later():
    image = Image.effect_noise((60, 50), 80)
    pixels = GRAY.transform(normalize=False)(image)
    assert pixels.dtype == torch.uint8
    assert torch.equal(GRAY.normalize(pixels), GRAY.transform()(image))


def test_normalization_builds_its_constants_once(monkeypatch):
    """On a GPU, each copy of constants from the host would wait for all computations."""
    preprocessing = Preprocessing(2, 2, (0.25, 0.5), (0.5, 2.0))
    pixels = torch.tensor([[[0, 255]], [[51, 102]]], dtype=torch.uint8)
    expected = torch.tensor([[[-0.5, 1.5]], [[-0.15, -0.05]]])
    torch.testing.assert_close(preprocessing.normalize(pixels), expected)
    on_meta = pixels.to("meta")
    assert preprocessing.normalize(on_meta).device.type == "meta"
    monkeypatch.setattr(torch, "tensor", None)
    torch.testing.assert_close(preprocessing.normalize(pixels), expected)
    assert preprocessing.normalize(on_meta).device.type == "meta"


@pytest.mark.parametrize("crop", ["random_resized", "padded", "none"])
def test_training_transforms(crop):
    for policy in ("none", "autoaugment", "randaugment"):
        transform = train_transform(
            Preprocessing(24, 28),
            crop=crop,
            crop_scale=(0.5, 1),
            crop_padding=2,
            flip=True,
            auto_augment=policy,
        )
        pixels = transform(Image.new("RGB", (50, 40), (255, 0, 0)))
        assert (pixels.shape, pixels.dtype) == ((3, 24, 24), torch.float32)


def test_random_erasing():
    transform = train_transform(Preprocessing(24, 24, (0.0,) * 3, (1.0,) * 3), **PLAIN, random_erasing=1.0)
    pixels = transform(Image.new("RGB", (24, 24), "red"))
    assert 0 < (pixels[0] == 0).float().mean() < 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_changes_brightness_but_not_places(channels):
    preprocessing = Preprocessing(24, 24, (0.5,) * channels, (0.5,) * channels)
    transform = train_transform(preprocessing, **PLAIN, color_jitter=0.4, normalize=False)
    image = Image.new("RGB", (24, 24), (120, 120, 120))
    image.paste((60, 60, 60), (0, 0, 12, 24))  # the left half is darker
    drawn = [transform(image) for _ in range(20)]
    assert all(len(pixels[0, :, :12].unique()) == len(pixels[0, :, 12:].unique()) == 1 for pixels in drawn)
    assert all(pixels[0, 0, 0] < pixels[0, 0, 23] for pixels in drawn)
    assert len({int(pixels[0, 0, 23]) for pixels in drawn}) > 10


def test_more_padding_than_image():
    with pytest.raises(
        UsageError, match="INPUT.CROP_PADDING 33 is larger than the 32-pixel input; lower it"
    ):
        train_transform(GRAY, crop="padded", crop_scale=(1, 1), crop_padding=33, flip=False)


def test_unknown_names_are_reported_with_their_config_key():
    with pytest.raises(UnknownNameError, match=r"unknown crop \(INPUT.CROP\) 'paded': did you mean padded"):
        train_transform(GRAY, **{**PLAIN, "crop": "paded"})
    with pytest.raises(UnknownNameError, match=r"unknown augmentation \(INPUT.AUTO_AUGMENT\) 'yes'"):
        train_transform(GRAY, **PLAIN, auto_augment="yes")


def test_custom_crop_and_augmentation():
    @CROPS.register(name="corner")
    def corner(preprocessing, scale, padding):
        crop = CROPS.get("padded")(preprocessing=preprocessing, scale=scale, padding=0)
        return lambda image: crop(image.crop((0, 0, image.width // 2, image.height // 2)))

    @AUGMENTATIONS.register(name="invert")
    def invert(preprocessing):
        class Invert(nn.Module):
            def forward(self, pixels):
                return 255 - pixels

        return Invert()

    try:
        image = Image.new("L", (80, 80), 255)
        image.paste(0, (0, 0, 40, 40))  # black in the corner
        transform = train_transform(
            GRAY, **{**PLAIN, "crop": "corner"}, auto_augment="invert", normalize=False
        )
        assert torch.equal(transform(image), torch.full((1, 32, 32), 255, dtype=torch.uint8))
    finally:
        CROPS.remove("corner")
        AUGMENTATIONS.remove("invert")
