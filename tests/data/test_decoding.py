"""Image files: what is decoded equals Pillow's, at a smaller scale too; damage is named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from fbnetv3.data import CorruptImageError, EncodedImage, Preprocessing
from fbnetv3.data.image_io import read_encoded_image, to_pixels
from fbnetv3.data.transforms import crop_and_resize


def photo(width, height, blur=2):
    """Something like a photograph: large and small structures."""
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
def test_pixels_are_pillows(format, channels):
    data = encoded(photo(150, 90), format)
    found = EncodedImage(data, "x").decode(channels)
    expected = to_pixels(Image.open(io.BytesIO(data)), channels)
    assert (found.shape, found.dtype) == ((channels, 90, 150), torch.uint8)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("arguments", [{}, {"progressive": True}, {"subsampling": 0}])
def test_every_kind_of_jpeg(mode, arguments):
    data = encoded(photo(150, 90).convert(mode), **arguments)
    expected = to_pixels(Image.open(io.BytesIO(data)), 3)
    assert torch.equal(EncodedImage(data, "x").decode(3), expected)


@pytest.mark.parametrize(("shrunk", "width"), [(1, 1601), (3.9, 1601), (4, 801), (8, 401), (15.9, 401), (16, 201)])
def test_what_is_shrunk_far_is_decoded_smaller(shrunk, width):
    data = encoded(photo(1601, 1203))
    assert EncodedImage(data, "x").decode(3, shrunk).shape[-1] == width
    assert EncodedImage(encoded(photo(160, 120), "PNG"), "x").decode(3, shrunk).shape[-1] == 160


@pytest.mark.parametrize("quality", [75, 95])
def test_decoding_smaller_hardly_shows(quality):
    """The same picture, a level or so apart on average, which is less than what JPEG itself loses."""
    data = encoded(photo(1601, 1203), quality=quality)
    preprocessing = Preprocessing(224, 256)
    whole = preprocessing.transform(normalize=False)(Image.open(io.BytesIO(data))).float()
    found = preprocessing.transform(normalize=False)(EncodedImage(data, "x")).float()
    assert 0 < (found - whole).abs().mean() < 1.5
    assert (found - whole).abs().max() < 16


def test_a_part_is_the_same_part_however_it_is_decoded():
    """Its edges lie at a whole pixel of the smaller image, at most half of one away."""
    data, box = encoded(photo(3200, 2400, blur=6)), (301, 507, 1900, 2100)
    whole = crop_and_resize(Image.open(io.BytesIO(data)), box, (224, 224), 3, "bilinear").float()
    found = crop_and_resize(EncodedImage(data, "x"), box, (224, 224), 3, "bilinear").float()
    shifted = whole.roll(1, -1)
    assert (found - whole).abs().mean() < 2 < 0.5 * (shifted - whole).abs().mean()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("side", [32, 224])
def test_resizing_is_pillows_to_a_level_or_two(interpolation, side):
    image = photo(150, 90)
    method = getattr(Image.Resampling, interpolation.upper())
    expected = to_pixels(image.resize((side, side), method), 3).int()
    found = crop_and_resize(image, (0, 0, 90, 150), (side, side), 3, interpolation).int()
    assert (found - expected).abs().max() <= (2 if interpolation == "bicubic" else 1)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("shrunk", [1, 8])
def test_a_file_cut_short_is_damaged(format, share, shrunk):
    data = encoded(photo(1600, 1200), format)
    with pytest.raises(CorruptImageError, match="x: corrupt image"):
        EncodedImage(data[: int(share * len(data))], "x").decode(3, shrunk)


def test_a_file_that_is_gone_or_a_folder(tmp_path):
    with pytest.raises(CorruptImageError, match=r"nothing\.jpg: no such file"):
        read_encoded_image(str(tmp_path / "nothing.jpg"))
    with pytest.raises(CorruptImageError, match=r"cannot be read \(Is a directory\)"):
        read_encoded_image(str(tmp_path))


def test_more_pixels_than_is_safe(monkeypatch):
    data = encoded(photo(150, 90))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(CorruptImageError, match="x: has too many pixels"):
        EncodedImage(data, "x")


def test_an_oddity_that_costs_no_pixel_is_no_damage():
    data = encoded(photo(150, 90))
    odd = data[:-2] + bytes(8) + data[-2:]
    assert torch.equal(EncodedImage(odd, "x").decode(3), EncodedImage(data, "x").decode(3))
