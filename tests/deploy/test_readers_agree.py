"""All readers of images, of classification and detection, in training and deployment, give the same pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from fbnetv3.data import CorruptImageError, Preprocessing, train_transform
from fbnetv3.data.image_io import read_encoded_image
from fbnetv3.deploy.input_images import load_image, load_rgb_array

SIZE = (36, 28)
# File formats that keep a mode, and modes that no file has
FORMATS = {
    "1": ("png", "tif", "bmp", "gif"),
    "L": ("png", "jpg", "tif", "jp2", "webp"),
    "P": ("png", "gif", "tif"),
    "LA": ("png", "tif"),
    "RGB": ("png", "jpg", "tif", "bmp", "webp", "jp2", "ppm", "avif"),
    "RGBA": ("png", "tif", "webp", "jp2", "avif"),
    "RGBX": ("tif",),
    "CMYK": ("jpg", "tif"),
    "YCbCr": ("tif",),
    "LAB": ("tif",),
    "I": ("tif",),
    "I;16": ("png", "tif", "jp2"),
    "I;16B": ("tif",),
    "F": ("tif",),
    "HSV": (),
    "PA": (),
    "La": (),
    "RGBa": (),
}
SOURCES = [(mode, suffix) for mode, suffixes in FORMATS.items() for suffix in (*suffixes, None)]


def noise(mode):
    """An image of a mode with random colors and, where it has any, transparency."""
    rng = np.random.default_rng(0)
    width, height = SIZE
    if mode == "F":
        return Image.fromarray(rng.random((height, width), np.float32))
    if mode.startswith("I"):
        values = rng.integers(0, 65_536, (height, width))
        if mode == "I;16B":
            return Image.frombytes(mode, SIZE, values.astype(">u2").tobytes())
        return Image.fromarray(values.astype({"I": np.int32, "I;16": np.uint16}[mode]))
    if mode == "LAB":
        return Image.frombytes(
            mode, SIZE, rng.integers(0, 256, width * height * 3, dtype=np.uint8).tobytes()
        )
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    if mode in ("La", "RGBa"):
        return image.convert(mode.upper()).convert(mode)
    if mode in ("P", "PA"):
        return image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).convert(mode)
    return image.convert(mode)


def read_by_mapper(path, size):
    mapper = pytest.importorskip("fbnetv3.detection.data.dataset_mapper")
    return mapper.read_image_array(path, "RGB")


def read_by_training_mapper(path, size):
    mapper = pytest.importorskip("fbnetv3.detection.data.dataset_mapper")
    read = mapper.FBNetV3DatasetMapper(
        is_train=True, augmentations=[], image_format="RGB", use_instance_mask=False
    )
    entry = {"file_name": str(path), "width": size[0], "height": size[1], "annotations": []}
    return read(entry)["image"].permute(1, 2, 0).numpy()


FILE_READERS = {
    "EncodedImage": lambda path, size: read_encoded_image(str(path)).decode(3).permute(1, 2, 0).numpy(),
    "detector predictor": lambda path, size: load_rgb_array(path),
    "detector predictor, Pillow image": lambda path, size: load_rgb_array(Image.open(path)),
    "detection": read_by_mapper,
    "detection, training": read_by_training_mapper,
}


def transforms_of_classification():
    preprocessing = Preprocessing(24, 24)
    arguments = {"crop_scale": (1, 1), "crop_padding": 0, "flip": False, "normalize": False}
    return {
        "evaluation": preprocessing.transform(normalize=False),
        "training": train_transform(preprocessing, crop="none", **arguments),
        "predictor": lambda image: preprocessing.crop_center(load_image(image)),
    }


def save(image, folder, suffix, **arguments):
    path = folder / f"x.{suffix}"
    image.save(path, **arguments)
    return path


@pytest.mark.parametrize(("mode", "suffix"), SOURCES)
def test_modes(mode, suffix, tmp_path):
    image = noise(mode)
    path = None
    if suffix:
        path = save(image, tmp_path, suffix)
        image = Image.open(path)
    expected = load_rgb_array(image.copy())
    assert expected.shape == (*SIZE[::-1], 3) and expected.std() > 10
    if path:
        for reader, read in FILE_READERS.items():
            assert np.array_equal(read(path, SIZE), expected), reader
    resized = Preprocessing(24, 24).crop_center(Image.fromarray(expected))
    for name, transform in transforms_of_classification().items():
        assert torch.equal(transform(image.copy()), resized), name
        if path:
            assert torch.equal(transform(read_encoded_image(str(path))), resized), name


@pytest.mark.parametrize("tag", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_orientations(tag, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = tag
    path = save(noise("RGB"), tmp_path, suffix, exif=exif)
    expected = load_rgb_array(path)
    size = SIZE if tag < 5 else SIZE[::-1]
    for reader, read in FILE_READERS.items():
        assert np.array_equal(read(path, size), expected), reader
    resized = Preprocessing(24, 24).crop_center(Image.fromarray(expected))
    for name, transform in transforms_of_classification().items():
        for image in (Image.open(path), read_encoded_image(str(path))):
            assert torch.equal(transform(image), resized), name


UNDEFINED = {
    "12 bits": np.full((4, 4), 4095, np.uint16),
    "32 bits": np.full((4, 4), 70_000, np.int32),
    "negative": np.full((4, 4), -1, np.int32),
    "float 255": np.full((4, 4), 255, np.float32),
    "NaN": np.full((4, 4), np.nan, np.float32),
}


@pytest.mark.parametrize("case", UNDEFINED)
def test_errors(case, tmp_path):
    path = save(Image.fromarray(UNDEFINED[case]), tmp_path, "tif")
    messages = set()
    for read in FILE_READERS.values():
        with pytest.raises(CorruptImageError) as error:
            read(path, (4, 4))
        messages.add(str(error.value).replace("the image:", f"{path}:"))
    for transform in transforms_of_classification().values():
        for image in (Image.open(path), read_encoded_image(str(path))):
            with pytest.raises(CorruptImageError) as error:
                transform(image)
            messages.add(str(error.value).replace("the image:", f"{path}:"))
    (message,) = messages
    assert message.startswith(f"{path}: mode ") and "scale" in message and "\n" not in message


def test_arrays_with_transparency_are_shown_on_white(tmp_path):
    noise("RGBA").save(tmp_path / "x.png")
    assert np.array_equal(load_rgb_array(np.asarray(noise("RGBA"))), load_rgb_array(tmp_path / "x.png"))
