"""Images that are damaged, too large, or programs: an error that names them."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fbnetv3.data import EncodedImage
from fbnetv3.data.upright import read_upright
from fbnetv3.deploy.input_images import upright_pixels
from fbnetv3.errors import DataError
from tests.hardening.conftest import THOROUGH


def png(width, height, text=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    parts += [chunk(b"zTXt", b"x\0\0" + text)] if text else []
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def encoded(format, size=(40, 30), mode="RGB"):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/tmp/x) (w) file closefile\nshowpage\n%%EOF\n"
)
IMAGES = {
    "four billion pixels": png(65_535, 65_535),
    "sides beyond all": png(2**31 - 1, 2**31 - 1),
    "nothing behind the header": png(100, 100),
    "a gigabyte of text": png(1, 1, zlib.compress(bytes(10**9), 1)),
    "JPEG of 65,500 pixels": encoded("JPEG").replace(struct.pack(">HH", 30, 40), b"\xff\xdc\xff\xdc"),
    "PostScript": EPS,
    "BMP of 2^31": encoded("BMP")[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + encoded("BMP")[26:],
    "GIF": b"GIF89a\xff\xff\xff\xff\x00\x00\x00",
    "nothing": b"",
    "text": b"hello",
    "a zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("case", IMAGES)
@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_hostile_images(tmp_path, case, name):
    path = tmp_path / name
    path.write_bytes(IMAGES[case])
    for read in (lambda: EncodedImage(IMAGES[case], name).pixels(3), lambda: read_upright(path)):
        with pytest.raises(DataError, match=name):
            read()
    with pytest.raises(DataError, match=name):
        upright_pixels(path)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_images_cut_short_or_with_wrong_bytes(tmp_path, format, chance):
    data = encoded(format)
    for number in range(30 * THOROUGH):
        wrong = bytearray(data)
        if number % 2:
            del wrong[chance.integers(len(wrong)) :]
        else:
            for _ in range(chance.integers(1, 6)):
                wrong[chance.integers(min(len(wrong), 200 if number % 4 else len(wrong)))] = chance.integers(256)
        (tmp_path / "x").write_bytes(wrong)
        for channels in (1, 3):
            try:
                found = EncodedImage(bytes(wrong), "x").pixels(channels, float(chance.choice([1, 9])))
                assert found.shape[0] == channels and found.dtype == torch.uint8
            except DataError as error:
                assert str(error).startswith("x: ") and "\n" not in str(error)
        try:
            assert upright_pixels(tmp_path / "x").shape[2] == 3
        except DataError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "LAB", "YCbCr"])
def test_every_mode_that_a_tiff_can_have(tmp_path, mode):
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    image = gray.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (8, 8))
    if mode == "I;16":
        image = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8))
    image.save(tmp_path / "x.tif")
    for channels in (1, 3):
        assert EncodedImage((tmp_path / "x.tif").read_bytes(), "x").pixels(channels).shape == (channels, 8, 8)
    assert upright_pixels(tmp_path / "x.tif").shape == (8, 8, 3)
