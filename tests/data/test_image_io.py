"""Decoding equals Pillow's, at a smaller scale too; errors name corrupt images."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from fbnetv3.data import CorruptImageError, EncodedImage, Preprocessing
from fbnetv3.data.image_io import read_encoded_image
from fbnetv3.data.image_rendering import pillow_to_tensor
from fbnetv3.data.transforms import crop_and_resize


def photo(width, height, blur=2):
    """Make an image with large and small structures, as in a photograph."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8))
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).filter(
        ImageFilter.GaussianBlur(blur)
    )
    return Image.blend(coarse.resize((width, height), Image.Resampling.BICUBIC), noise, 0.4)


def encoded(image, format="JPEG", **arguments):
    file = io.BytesIO()
    image.save(file, format, **arguments)
    return file.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_equal_pillows(format, channels):
    data = encoded(photo(150, 90), format)
    pixels = EncodedImage(data, "x").decode(channels)
    assert (pixels.shape, pixels.dtype) == ((channels, 90, 150), torch.uint8)
    assert torch.equal(pixels, pillow_to_tensor(Image.open(io.BytesIO(data)), channels))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("arguments", [{}, {"progressive": True}, {"subsampling": 0}])
def test_all_kinds_of_jpeg(mode, arguments):
    data = encoded(photo(150, 90).convert(mode), **arguments)
    expected = pillow_to_tensor(Image.open(io.BytesIO(data)), 3)
    assert torch.equal(EncodedImage(data, "x").decode(3), expected)


@pytest.mark.parametrize(
    ("downscale", "width"), [(1, 1601), (3.9, 1601), (4, 801), (8, 401), (15.9, 401), (16, 201)]
)
def test_strongly_downscaled_images_are_decoded_smaller(downscale, width):
    data = encoded(photo(1601, 1203))
    assert EncodedImage(data, "x").decode(3, downscale).shape[-1] == width
    assert EncodedImage(encoded(photo(160, 120), "PNG"), "x").decode(3, downscale).shape[-1] == 160


def test_decoding_at_one_scale_does_not_affect_the_next():
    image = EncodedImage(encoded(Image.new("L", (512, 512))), "gray")
    assert image.decode(1, 8.0).shape == (1, 128, 128)
    assert image.decode(1).shape == (1, 512, 512)


@pytest.mark.parametrize("quality", [75, 95])
def test_decoding_at_a_smaller_scale_hardly_shows(quality):
    """The pixels differ by about one level on average, less than JPEG compression changes them."""
    data = encoded(photo(1601, 1203), quality=quality)
    preprocessing = Preprocessing(224, 256)
    transform = preprocessing.transform(normalize=False)
    full_scale = transform(Image.open(io.BytesIO(data))).float()
    smaller = transform(EncodedImage(data, "x")).float()
    assert 0 < (smaller - full_scale).abs().mean() < 1.5
    assert (smaller - full_scale).abs().max() < 16


def test_a_part_is_at_the_same_position_at_any_scale():
    """Its edges are rounded to a pixel of the smaller image, by at most half a pixel."""
    data = encoded(photo(3200, 2400, blur=6))
    box = (301, 507, 1900, 2100)
    full_scale = crop_and_resize(Image.open(io.BytesIO(data)), box, (224, 224), 3, "bilinear").float()
    smaller = crop_and_resize(EncodedImage(data, "x"), box, (224, 224), 3, "bilinear").float()
    shifted = full_scale.roll(1, -1)
    assert (smaller - full_scale).abs().mean() < 2 < 0.5 * (shifted - full_scale).abs().mean()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("side", [32, 224])
def test_resizing_equals_pillows_up_to_two_levels(interpolation, side):
    image = photo(150, 90)
    method = getattr(Image.Resampling, interpolation.upper())
    expected = pillow_to_tensor(image.resize((side, side), method), 3).int()
    resized = crop_and_resize(image, (0, 0, 90, 150), (side, side), 3, interpolation).int()
    assert (resized - expected).abs().max() <= (2 if interpolation == "bicubic" else 1)


@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("downscale", [1, 8])
def test_a_truncated_file_is_corrupt(format, fraction, downscale):
    data = encoded(photo(1600, 1200), format)
    with pytest.raises(CorruptImageError, match="x: corrupt image"):
        EncodedImage(data[: int(fraction * len(data))], "x").decode(3, downscale)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(CorruptImageError, match=r"nothing\.jpg: no such file"):
        read_encoded_image(str(tmp_path / "nothing.jpg"))
    with pytest.raises(CorruptImageError, match=r"cannot be read \(Is a directory\)"):
        read_encoded_image(str(tmp_path))


def test_too_many_pixels(monkeypatch):
    data = encoded(photo(150, 90))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(CorruptImageError, match="x: has too many pixels to decode safely"):
        EncodedImage(data, "x")


def test_unusual_bytes_that_affect_no_pixel_are_tolerated():
    data = encoded(photo(150, 90))
    unusual = data[:-2] + bytes(8) + data[-2:]
    assert torch.equal(EncodedImage(unusual, "x").decode(3), EncodedImage(data, "x").decode(3))
