"""Images of all modes become what a viewer shows: upright, on white, 8 bits; otherwise an error names the image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from fbnetv3.data import CorruptImageError, EncodedImage, Preprocessing, build_loader, train_transform
from fbnetv3.data.image_rendering import pillow_to_tensor, render_image
from fbnetv3.data.transforms import CROPS

RED = (255, 0, 0)
WHITE = (255, 255, 255)
# Each mode with a color and what a viewer shows for it. Half transparent is 128 / 255 of the color, the rest white.
COLORS = {
    "1": (255, WHITE),
    "L": (90, (90, 90, 90)),
    "LA": ((90, 128), (172, 172, 172)),
    "La": ((90, 128), (217, 217, 217)),
    "RGB": ((200, 100, 50), (200, 100, 50)),
    "RGBX": ((200, 100, 50, 7), (200, 100, 50)),
    "RGBA": ((200, 100, 50, 128), (227, 177, 152)),
    "RGBa": ((100, 50, 25, 128), (227, 177, 152)),
    "CMYK": ((0, 255, 255, 0), RED),
    "YCbCr": ((76, 85, 255), RED),
    "HSV": ((0, 255, 255), RED),
    "LAB": ((255, 128, 128), WHITE),
    "I": (0x5A00, (90, 90, 90)),
    "I;16": (0x5A00, (90, 90, 90)),
    "I;16L": (0x5A00, (90, 90, 90)),
    "I;16B": (0x5A00, (90, 90, 90)),
    "I;16N": (0x5A00, (90, 90, 90)),
    "F": (0.4, (102, 102, 102)),
}


def plain_image(mode, color, size=(6, 4)):
    if mode.startswith("I;16") and mode != "I;16":  # Pillow does not fill these
        pixels = np.full(size, color, ">u2" if mode.endswith("B") else "<u2")
        return Image.frombytes(mode, size, pixels.tobytes())
    return Image.new(mode, size, color)


def encode(image, format, **arguments):
    file = io.BytesIO()
    image.save(file, format, **arguments)
    return file.getvalue()


def exif_with_orientation(tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif


@pytest.mark.parametrize("mode", COLORS)
def test_modes(mode):
    color, shown = COLORS[mode]
    rendered = render_image(plain_image(mode, color))
    assert rendered.mode == ("RGB" if mode[0] in "RCYH" or mode == "LAB" else "L")
    pixels = np.asarray(rendered.convert("RGB")).reshape(-1, 3).astype(int)
    assert (abs(pixels - shown) <= 1).all()
    assert pillow_to_tensor(plain_image(mode, color), 1).shape == (1, 4, 6)


def test_all_modes_of_pillow_are_tested():
    assert set(COLORS) | {"P", "PA"} == set(Image.MODES) | {"I;16L", "I;16B", "I;16N", "I;16"}


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_palettes(mode):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    pixels = np.asarray(render_image(image.convert(mode)))
    assert pixels.tolist() == [[list(RED), [0, 0, 255]]]


@pytest.mark.parametrize(
    ("mode", "color", "transparency"),
    [
        ("1", 0, 0),
        ("L", 7, 7),
        ("P", 3, 3),
        ("P", 3, bytes([255, 255, 255, 0])),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("I;16", 5000, 5000),
    ],
)
def test_a_transparent_color_is_shown_on_white(mode, color, transparency):
    image = Image.new(mode, (2, 2), color)
    image.putpixel((0, 0), (200, 0, 0) if mode == "RGB" else 60_000 if mode == "I;16" else 1)
    image.info["transparency"] = transparency
    pixels = np.asarray(render_image(image).convert("L"))
    assert pixels[1].tolist() == [255, 255] and pixels[0, 1] == 255
    if mode not in ("1", "P"):
        assert pixels[0, 0] < 255


def test_16_bits_keep_their_range():
    image = Image.fromarray(np.array([[0, 255, 256, 32_768, 65_535]], np.uint16))
    assert np.asarray(render_image(image)).tolist() == [[0, 0, 1, 128, 255]]


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
@pytest.mark.parametrize("brightest", [1, 255, 4095])
def test_images_that_would_turn_black_are_refused(mode, brightest):
    image = plain_image(mode, brightest)
    with pytest.raises(CorruptImageError, match=rf"x\.png: mode {mode}, .* {brightest} of 65535.*; scale"):
        render_image(image, "x.png")


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_black_images_are_black_and_dark_ones_dark(mode):
    assert render_image(plain_image(mode, 0)).getextrema() == (0, 0)
    assert render_image(plain_image(mode, 4096)).getextrema() == (16, 16)


def sixteen_bit_png(color_type, values):
    """Encode a PNG of 16 bits per channel, which Pillow does not write except for gray."""
    from zlib import compress

    file = io.BytesIO()
    file.write(b"\x89PNG\r\n\x1a\n")
    height, width = values.shape[:2]
    header = b"".join(n.to_bytes(4, "big") for n in (width, height)) + bytes([16, color_type, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    for kind, data in ((b"IHDR", header), (b"IDAT", compress(rows)), (b"IEND", b"")):
        PngImagePlugin.putchunk(file, kind, data)
    return file.getvalue()


@pytest.mark.parametrize(("color_type", "bands"), [(2, 3), (4, 2), (6, 4)])
def test_colors_of_16_bits_that_would_turn_black_are_refused(color_type, bands):
    """Pillow reads only the high byte of each color."""
    values = np.full((3, 4, bands), 65_535)
    values[..., 0] = 0x5A00
    assert EncodedImage(sixteen_bit_png(color_type, values), "x.png").decode(3)[0].unique().tolist() == [90]
    for brightest in (200, 4095):
        values[..., : bands - (bands % 2 == 0)] = brightest
        image = EncodedImage(sixteen_bit_png(color_type, values), "x.png")
        with pytest.raises(
            CorruptImageError, match=r"x\.png: mode \w+ of 16 bits, the brightest value is below"
        ):
            image.decode(3)


def test_other_formats_of_16_bits():
    for data in (
        b"P6 2 1 65535\n" + np.full(6, 3000, ">u2").tobytes(),
        b"P3 2 1 65535\n" + b"3000 " * 6,
        encode(Image.new("RGB", (2, 1), (9, 9, 9)), "SGI", bpc=2),
    ):
        with pytest.raises(CorruptImageError, match="x: mode RGB of 16 bits, the brightest value is below"):
            EncodedImage(data, "x").decode(3)
    ordinary = b"P6 2 1 65535\n" + np.full(6, 257 * 90, ">u2").tobytes()
    assert EncodedImage(ordinary, "x").decode(3).unique().tolist() == [90]
    assert EncodedImage(b"P6 2 1 255\n" + bytes([9] * 6), "x").decode(3).unique().tolist() == [9]


@pytest.mark.parametrize("values", [(-1, 500), (0, 65_536), (-(2**31), 2**31 - 1)])
def test_integers_beyond_16_bits_are_refused(values):
    image = Image.fromarray(np.array([values], np.int32))
    message = f"x.tif: mode I has values from {values[0]} to {values[1]}; scale them to 0..65535"
    with pytest.raises(CorruptImageError, match=message):
        EncodedImage(encode(image, "TIFF"), "x.tif").decode(3)


@pytest.mark.parametrize(
    ("values", "shown"),
    [((0, 255), "0 to 255"), ((-0.1, 1), "-0.1 to 1"), ((0, np.nan), "nan"), ((0, np.inf), "0 to inf")],
)
def test_floats_outside_0_to_1_are_refused(values, shown):
    image = Image.fromarray(np.array([values], np.float32))
    with pytest.raises(
        CorruptImageError, match=rf"x\.tif: mode F has values from .*{shown}.*; scale them to 0..1"
    ):
        EncodedImage(encode(image, "TIFF"), "x.tif").decode(1)


@pytest.mark.parametrize("brightest", [1e-6, 1 / 255, 0.0624])
def test_floats_that_would_turn_black_are_refused(brightest):
    """Below a sixteenth, as for integers."""
    image = Image.fromarray(np.array([[0, brightest]], np.float32))
    with pytest.raises(CorruptImageError, match=r"x.tiff: mode F, the brightest value is .* of 1, so that"):
        render_image(image, "x.tiff")


def test_black_and_dark_floats_are_read():
    image = Image.fromarray(np.array([[0, 0.0625]], np.float32))
    assert np.asarray(render_image(image)).tolist() == [[0, 16]]
    assert np.asarray(render_image(Image.fromarray(np.zeros((1, 2), np.float32)))).tolist() == [[0, 0]]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_read(format):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    pixels = EncodedImage(data, "x").decode(3).float().mean((1, 2))
    assert (pixels - torch.tensor(RED)).abs().max() < 4


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "gray JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_orientation(tag, format, channels):
    rng = np.random.default_rng(tag)
    image = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))
    if format == "gray JPEG":
        image = image.convert("L")
    data = encode(image, format.split()[-1], exif=exif_with_orientation(tag))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(
        "RGB" if channels == 3 else "L"
    )
    encoded = EncodedImage(data, "x")
    assert encoded.size == expected.size == ((56, 40) if tag < 5 else (40, 56))
    pixels = encoded.decode(channels).permute(1, 2, 0).squeeze(2).numpy()
    assert np.array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize("tag", range(1, 9))
def test_turned_jpegs_are_decoded_smaller(tag):
    image = Image.radial_gradient("L").resize((640, 320)).convert("RGB")
    image.paste((255, 0, 0), (0, 0, 160, 80))
    encoded = EncodedImage(encode(image, "JPEG", exif=exif_with_orientation(tag)), "x")
    full, small = encoded.decode(3).float(), encoded.decode(3, downscale=8).float()
    assert small.shape[1:] == (full.shape[1] // 4, full.shape[2] // 4)
    averaged = torch.nn.functional.avg_pool2d(full, 4)
    assert (averaged - small).abs().mean() < 3


def test_orientation_in_xmp_and_behind_the_pixels_of_a_png():
    image = Image.new("RGB", (6, 4))
    image.putpixel((0, 0), RED)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    after_pixels = bytearray(encode(image, "PNG"))
    chunk = io.BytesIO()
    PngImagePlugin.putchunk(chunk, b"eXIf", exif_with_orientation(6).tobytes()[6:])
    after_pixels[-12:-12] = chunk.getvalue()
    files = encode(image, "PNG", pnginfo=text), bytes(after_pixels)
    for data in (*files, encode(image, "JPEG", xmp=xmp)):
        encoded = EncodedImage(data, "x")
        assert encoded.size == (4, 6)
        assert encoded.decode(3)[0].argmax().item() == 3  # the red corner is at the top right


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_corrupt_exif_data_is_ignored():
    data = encode(Image.new("RGB", (6, 4)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    assert EncodedImage(data, "x").size == (6, 4)
    assert EncodedImage(data, "x").decode(3).shape == (3, 4, 6)


def turned_image():
    """A Pillow image, 60 x 40 as stored, that a viewer turns by 90 degrees."""
    image = Image.radial_gradient("L").resize((60, 40)).convert("RGB")
    image.paste(RED, (0, 0, 10, 10))
    image.info["exif"] = exif_with_orientation(6).tobytes()
    return image


def test_preprocessing_turns_pillow_images():
    image = turned_image()
    upright = ImageOps.exif_transpose(image)
    assert upright.size == (40, 60)
    preprocessing = Preprocessing(24, 28)
    assert torch.equal(preprocessing.transform()(image), preprocessing.transform()(upright))
    assert torch.equal(preprocessing.crop_center(image), preprocessing.crop_center(upright))
    box = (45, 5, 15, 30)  # below the 40th row, which only the upright image has
    for part in (None, box):
        assert torch.equal(
            preprocessing.resize_to_square(image, part), preprocessing.resize_to_square(upright, part)
        )


@pytest.mark.parametrize("crop", ["random_resized", "padded", "none", "size"])
def test_training_transforms_turn_pillow_images(crop):
    @CROPS.register(name="size")
    def crop_of_the_size(preprocessing, scale, padding):
        return lambda image: torch.tensor(image.size)

    try:
        arguments = {
            "crop": crop,
            "crop_scale": (0.5, 1),
            "crop_padding": 2,
            "flip": False,
            "normalize": False,
        }
        transform = train_transform(Preprocessing(24, 28), **arguments)
        torch.manual_seed(0)
        pixels = transform(turned_image())
        torch.manual_seed(0)
        assert torch.equal(pixels, transform(ImageOps.exif_transpose(turned_image())))
    finally:
        CROPS.remove("size")


def test_rendering_twice_changes_nothing():
    for image in (turned_image(), Image.new("RGBA", (4, 4), (9, 9, 9, 9)), Image.new("P", (4, 4))):
        rendered = render_image(image)
        assert render_image(rendered) is rendered


def test_images_of_a_custom_dataset_are_named():
    class Floats:
        classes = ("a",)

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Image.new("F", (8, 8), 255.0), 0

        def image_name(self, index):
            return "floats[0]"

    (batch,) = build_loader(Floats(), Preprocessing(8, 8).transform(), batch_size=1, training=False)
    assert batch.errors == ["floats[0]: the image: mode F has values from 255 to 255; scale them to 0..1"]
