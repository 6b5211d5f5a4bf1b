"""Images for networks with other numbers of channels than gray and RGB: alpha, pages of TIFF files, arrays."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from fbnetv3.data import (
    ArrayImage,
    CorruptImageError,
    EncodedImage,
    Preprocessing,
    build_dataset,
    train_transform,
)
from fbnetv3.data.check.examination import examine_image
from fbnetv3.data.image_rendering import pillow_to_tensor
from fbnetv3.errors import DataError, UsageError
from tests.data.test_image_rendering import (
    COLORS,
    encode,
    exif_with_orientation,
    plain_image,
    sixteen_bit_png,
)

# What a network with four channels gets for the colors of the modes that have transparency
RGBA = {
    "LA": (90, 90, 90, 128),
    "La": (179, 179, 179, 128),  # of 128 / 255: 90 was premultiplied
    "RGBA": (200, 100, 50, 128),
    "RGBa": (199, 100, 50, 128),
}


def tiff_of_pages(*pages):
    first, *others = map(Image.fromarray, pages)
    return encode(first, "TIFF", save_all=True, append_images=others)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# Its header claims far more than the file has
HUGE_ARRAY = npy(np.zeros((4, 4, 5), np.uint8)).replace(
    b"(4, 4, 5), }" + b" " * 18, b"(9999999, 9999999, 5), }" + b" " * 6
)
assert b"9999999" in HUGE_ARRAY


def tiff_of_bands(count, photometric, side=4):
    """Encode a TIFF with all bands in one page, which Pillow does not write."""
    pixels = bytes(range(side * side * count))
    position = 8 + len(pixels)
    values = {256: side, 257: side, 258: 0, 259: 1, 262: photometric, 273: 8, 277: count, 278: side}
    values |= {279: len(pixels), 284: 1, 338: 0}  # an extra sample of no known meaning
    end = position + 2 + 12 * len(values) + 4
    tags = b""
    for tag, value in values.items():
        kind, number, value = (3, count, end) if tag == 258 else (4, 1, value)
        tags += struct.pack("<HHII", tag, kind, number, value)
    bits = struct.pack(f"<{count}H", *[8] * count)
    return (
        b"II*\0"
        + struct.pack("<I", position)
        + pixels
        + struct.pack("<H", len(values))
        + tags
        + bytes(4)
        + bits
    )


@pytest.mark.parametrize("mode", COLORS)
def test_four_channels_are_rgba(mode):
    """Modes without transparency have the color that they have in RGB, and an alpha of 255."""
    color, shown = COLORS[mode]
    pixels = pillow_to_tensor(plain_image(mode, color), 4)
    assert pixels.shape == (4, 4, 6)
    expected = np.array(RGBA.get(mode, (*shown, 255)))
    assert (abs(pixels.flatten(1).numpy().astype(int) - expected[:, None]) <= 1).all()


def test_a_transparent_color_has_no_alpha():
    image = Image.new("P", (2, 1), 3)
    image.putpixel((0, 0), 1)
    image.info["transparency"] = 3
    assert pillow_to_tensor(image, 4)[3].tolist() == [[255, 0]]


def test_alpha_is_turned_with_the_image():
    alpha = np.zeros((3, 5, 4), np.uint8)
    alpha[0, 4, 3] = 200  # upper right, which orientation 6 turns to the lower right
    data = encode(Image.fromarray(alpha), "PNG", exif=exif_with_orientation(6))
    image = EncodedImage(data, "x.png")
    assert image.size == (3, 5)
    assert image.decode(4)[3].nonzero().tolist() == [[4, 2]]


def test_transparent_colors_of_16_bits_that_would_turn_black_are_refused():
    values = np.full((3, 4, 4), 65_535)
    values[..., :3] = 200
    with pytest.raises(CorruptImageError, match="RGBA of 16 bits, the brightest value is below"):
        EncodedImage(sixteen_bit_png(6, values), "x.png").decode(4)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_gray_pages_of_a_tiff_are_channels(channels):
    pages = [np.full((4, 6), 40 * i, np.uint8) for i in range(channels)]
    image = EncodedImage(tiff_of_pages(*pages), "x.tif")
    assert image.decode(channels).flatten(1).float().mean(1).tolist() == [40 * i for i in range(channels)]
    assert image.decode(3).unique().tolist() == [0]  # of an RGB network, the first page
    assert torch.equal(image.preview(), image.decode(3))


def test_pages_of_16_bits_have_the_range_of_images():
    data = tiff_of_pages(np.full((2, 2), 0x5A00, np.uint16), np.full((2, 2), 65_535, np.uint16))
    assert EncodedImage(data, "x.tif").decode(2).flatten(1)[:, 0].tolist() == [90, 255]


@pytest.mark.parametrize(
    ("data", "channels", "message"),
    [
        (
            encode(Image.new("RGB", (4, 4)), "PNG"),
            5,
            "x: is mode RGB with 3 channels, but the network takes 5",
        ),
        (
            encode(Image.new("RGB", (4, 4)), "JPEG"),
            2,
            "x: is mode RGB with 3 channels, but the network takes 2",
        ),
        (tiff_of_pages(*[np.zeros((4, 4), np.uint8)] * 3), 5, "x: is mode L with 3 pages, but .* takes 5"),
        (tiff_of_pages(*[np.zeros((4, 4, 3), np.uint8)] * 5), 5, "x: is mode RGB with 5 pages"),
        (
            tiff_of_pages(np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)),
            2,
            "page 2 differs in size",
        ),
        (tiff_of_bands(4, photometric=2), 4, "x: has a channel besides RGB that is not alpha"),
        (tiff_of_bands(5, photometric=1), 5, "x: .*many bands, save each as a gray page"),
        (npy(np.zeros((4, 4, 3), np.uint8)), 5, "x: is an array with 3 channels, but the network takes 5"),
        (npy(np.zeros((4, 4, 5), np.uint8)), 3, "x: is an array with 5 channels, but the network takes 3"),
        (npy(np.zeros((5, 4, 4, 1), np.uint8)), 5, r"x: shape \(5, 4, 4, 1\) must be .*channels last"),
        (npy(np.full((4, 4, 5), 300)), 5, "x: type int64, the brightest value is 300 of 65535"),
        (npy(np.full((4, 4, 5), 7.0)), 5, r"x: type float64 has values from 7 to 7; scale them to 0..1"),
        (npy(np.array([[None]])), 1, "x: corrupt image"),
        (npy(np.zeros((4, 4, 5), np.uint8))[:-1], 5, "x: corrupt image"),
        (HUGE_ARRAY, 5, "x: corrupt image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_named(data, channels, message):
    with pytest.raises(CorruptImageError, match=message):
        EncodedImage(data, "x").decode(channels)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.uint8(90), 90), (np.uint16(0x5A00), 90), (np.float32(0.4), 102), (True, 255)],
)
def test_values_of_arrays_have_the_range_of_images(value, expected):
    image = EncodedImage(npy(np.full((4, 6, 5), value)), "x.npy")
    assert (image.size, image.array_channels) == ((6, 4), 5)
    assert image.decode(5).unique().tolist() == [expected]
    assert image.preview().shape == (3, 4, 6)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("own", [1, 3, 4])
def test_arrays_of_gray_rgb_and_rgba_mean_the_same_as_image_files(channels, own):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, own), dtype=np.uint8)
    picture = Image.fromarray(pixels[:, :, 0] if own == 1 else pixels)
    expected = EncodedImage(encode(picture, "PNG"), "x.png").decode(channels)
    assert torch.equal(EncodedImage(npy(pixels), "x.npy").decode(channels), expected)


@pytest.mark.parametrize("channels", [4, 5])
def test_each_channel_is_transformed_like_a_gray_image(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    crop = Preprocessing(8, 10, (0.5,) * channels, (0.25,) * channels).transform()(ArrayImage(pixels))
    for i in range(channels):
        gray = Preprocessing(8, 10, (0.5,), (0.25,)).transform()(Image.fromarray(pixels[:, :, i]))
        assert torch.equal(crop[i], gray[0])


def test_images_in_memory_mean_the_same_as_files():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    preprocessing = Preprocessing(8, 9, (0.5,) * 4, (0.25,) * 4)
    options = {"crop_scale": (0.5, 1), "crop_padding": 1, "flip": True, "random_erasing": 0.5}
    for crop in ("none", "padded", "random_resized"):
        transform = train_transform(preprocessing, crop=crop, **options)
        outputs = []
        for source in (image, EncodedImage(encode(image, "PNG"), "x"), ArrayImage(pixels)):
            torch.manual_seed(0)
            outputs.append(transform(source))
        assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("option", [{"color_jitter": 0.4}, {"auto_augment": "randaugment"}])
def test_changes_of_colors_need_gray_or_rgb(option):
    preprocessing = Preprocessing(8, 8, (0.5,) * 4, (0.25,) * 4)
    options = {"crop": "none", "crop_scale": (0.5, 1), "crop_padding": 1, "flip": True}
    with pytest.raises(UsageError, match=r"needs images with 1 or 3 channels, not MODEL.IN_CHANS 4"):
        train_transform(preprocessing, **options, **option)


def test_class_folders_of_arrays_are_refused_with_the_reason(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "a.npy").write_bytes(npy(np.zeros((4, 4, 5), np.uint8)))
    with pytest.raises(
        DataError, match=r"folder cat; .* \(skipped 1 file without an image suffix \(\.npy\)\)"
    ):
        build_dataset("imagefolder", str(tmp_path), "train")


def test_a_data_check_compares_all_channels_of_arrays():
    arrays = np.full((3, 4, 6, 5), 100, np.uint8)
    arrays[1, ..., 4] = 101

    class Arrays:
        classes = ("a",)

        def __getitem__(self, index):
            return EncodedImage(npy(arrays[index]), "x.npy"), 0

        def image_name(self, index):
            return f"{index}.npy"

    first, other, same = (examine_image(Arrays(), "train", index) for index in range(3))
    assert (first.mode, first.format, first.size, first.error) == ("5 channels", "NumPy", (6, 4), "")
    assert first.pixel_digest == same.pixel_digest != other.pixel_digest
