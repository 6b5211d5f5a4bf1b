"""Images of extreme aspect ratios are preprocessed as others, in little memory."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fbnetv3.data import EncodedImage, Preprocessing


def encode_png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def resize_and_crop(pixels, resize, resolution, interpolation):
    """Resize a whole image (height, width, 3) with torch, then crop its center."""
    height, width = pixels.shape[:2]
    size = [int(resize * side / min(height, width)) for side in (height, width)]
    mode = {"nearest": "nearest-exact"}.get(interpolation, interpolation)
    image = torch.tensor(pixels).permute(2, 0, 1)[None]
    resized = F.interpolate(image, size, mode=mode, antialias=interpolation != "nearest")[0]
    top, left = (round((side - resolution) / 2) for side in size)
    return resized[:, top : top + resolution, left : left + resolution]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("long_side", "short_side"), [(18, 2), (40, 1), (270, 30), (301, 7), (1200, 100)])
@pytest.mark.parametrize("is_tall", [False, True])
def test_the_center_is_that_of_the_resized_image(interpolation, long_side, short_side, is_tall):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (long_side, short_side, 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(pixels if is_tall else pixels.transpose(1, 0, 2))
    expected = resize_and_crop(pixels, 42, 36, interpolation)
    image = Image.fromarray(pixels)
    preprocessing = Preprocessing(36, 42, interpolation=interpolation)
    for source in (image, EncodedImage(encode_png(image), "x")):
        assert torch.equal(preprocessing.crop_center(source), expected)


def test_a_long_side_that_becomes_a_fraction_of_a_pixel_longer():
    """330 pixels become 346.5, which are rounded to 346 if the image is resized as a whole."""
    pixels = np.asarray(Image.radial_gradient("L").resize((330, 40)).convert("RGB"))
    expected = resize_and_crop(pixels, 42, 36, "bilinear")
    actual = Preprocessing(36, 42).crop_center(Image.fromarray(pixels))
    assert (actual.int() - expected.int()).abs().max() <= 1


def test_any_aspect_ratio():
    """From 1:1 to 1:600, the center is that of the whole image, resized, up to rounding of its length: half a pixel."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 2, 3), dtype=np.uint8))
    for short_side in (1, 3, 10, 37):
        for ratio in (1, 1.3, 2, 4.7, 7.9, 8, 8.1, 9.4, 33, 128, 600):
            size = (short_side, round(ratio * short_side))
            image = coarse.resize(size, Image.Resampling.BICUBIC)
            for turned in (image, image.transpose(Image.Transpose.ROTATE_90)):
                expected = resize_and_crop(np.array(turned), 42, 36, "bilinear")
                actual = Preprocessing(36, 42).crop_center(turned)
                steps = [expected.int().diff(dim=dim).abs().max() for dim in (1, 2)]
                difference = (actual.int() - expected.int()).abs().max()
                assert difference <= (1 if ratio <= 8 else 1 + max(steps) / 2), (short_side, ratio)


SCRIPT = """
import io, resource, sys
import numpy as np
from PIL import Image
from fbnetv3.data import EncodedImage, Preprocessing, train_transform
from fbnetv3.deploy.input_images import load_image, load_rgb_array
from fbnetv3.deploy.predictors.detector_predictor import ShortSideResize

def read(width, height):
    image = Image.new("L", (width, height))
    file = io.BytesIO()
    image.save(file, "PNG")
    preprocessing = Preprocessing(224, 256)
    transforms = [preprocessing.transform()]
    for crop in ("random_resized", "padded", "none"):
        arguments = {"crop_scale": (0.08, 1), "crop_padding": 4, "flip": True}
        transforms.append(train_transform(preprocessing, crop=crop, **arguments))
    for transform in transforms:
        for source in (load_image(image), EncodedImage(file.getvalue(), "x")):
            assert transform(source).shape == (3, 224, 224)
    resized = ShortSideResize(384, 640)(load_rgb_array(image))
    assert max(resized.shape) <= 640

read(50, 40)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for size in ((60_000, 1), (1, 60_000), (65_000, 2), (3, 65_000), (1, 3_000_000), (3_000_000, 1)):
    read(*size)
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert megabytes < 200, f"{size}: {megabytes} MB"
"""


def test_little_memory_is_needed():
    """At most 200 MB for all transforms of classification, and the resizing of detection."""
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
