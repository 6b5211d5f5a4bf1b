"""Corrupt and oversized images, and other files in place of images, raise an error that names the file."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fbnetv3.data import EncodedImage
from fbnetv3.data.image_io import read_rendered_image
from fbnetv3.deploy.input_images import load_rgb_array
from fbnetv3.errors import DataError
from tests.hardening.conftest import SCALE


def forge_png(width, height, text=b""):
    """Return a PNG whose header claims a size and that has almost no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    parts += [chunk(b"zTXt", b"x\0\0" + text)] if text else []
    return (
        b"\x89PNG\r\n\x1a\n"
        + b"".join(parts)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )


def encode_noise(format, size=(40, 30), mode="RGB"):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    b"(/tmp/x) (w) file closefile\nshowpage\n%%EOF\n"
)
IMAGES = {
    "four billion pixels": forge_png(65_535, 65_535),
    "sides of 2^31": forge_png(2**31 - 1, 2**31 - 1),
    "no pixels after the header": forge_png(100, 100),
    "a gigabyte of text": forge_png(1, 1, zlib.compress(bytes(10**9), 1)),
    "JPEG of 65,500 pixels": encode_noise("JPEG").replace(struct.pack(">HH", 30, 40), b"\xff\xdc\xff\xdc"),
    "PostScript": EPS,
    "BMP of 2^31": encode_noise("BMP")[:18]
    + struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    + encode_noise("BMP")[26:],
    "truncated GIF": b"GIF89a\xff\xff\xff\xff\x00\x00\x00",
    "empty file": b"",
    "text": b"hello",
    "ZIP": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("case", IMAGES)
@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_hostile_images_are_named(tmp_path, case, name):
    path = tmp_path / name
    path.write_bytes(IMAGES[case])
    for read in (lambda: EncodedImage(IMAGES[case], name).decode(3), lambda: read_rendered_image(path)):
        with pytest.raises(DataError, match=name):
            read()
    with pytest.raises(DataError, match=name):
        load_rgb_array(path)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_truncated_and_corrupt_images_are_decoded_or_named(tmp_path, format, rng):
    data = encode_noise(format)
    for number in range(30 * SCALE):
        corrupt = bytearray(data)
        if number % 2:
            del corrupt[rng.integers(len(corrupt)) :]
        else:
            # Corrupt the header in half of the cases
            end = min(len(corrupt), 200) if number % 4 else len(corrupt)
            for _ in range(rng.integers(1, 6)):
                corrupt[rng.integers(end)] = rng.integers(256)
        (tmp_path / "x").write_bytes(corrupt)
        for channels in (1, 3):
            try:
                pixels = EncodedImage(bytes(corrupt), "x").decode(channels, float(rng.choice([1, 9])))
                assert pixels.shape[0] == channels and pixels.dtype == torch.uint8
            except DataError as error:
                assert str(error).startswith("x: ") and "\n" not in str(error)
        try:
            assert load_rgb_array(tmp_path / "x").shape[2] == 3
        except DataError as error:
            assert "\n" not in str(error)
