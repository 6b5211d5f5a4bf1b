"""The browser's preprocessing gives the numbers that Python's gives."""

import io

import numpy as np
import pytest
from PIL import Image

from fbnetv3.data import Preprocessing
from fbnetv3.data.image_io import EncodedImage
from fbnetv3.deploy import load
from fbnetv3.deploy.predictors.detector_predictor import ShortSideResize
from tests.web_images import encode, image_files

# Width, height, `resize`, `resolution`, interpolation
CASES = [
    (640, 427, 32, 28, "bilinear"),
    (97, 103, 64, 56, "bilinear"),  # shrunk a little
    (30, 41, 64, 63, "bilinear"),  # enlarged; half a pixel is cropped on each side
    (120, 90, 33, 32, "bicubic"),
    (21, 20, 48, 48, "bicubic"),
    (77, 50, 31, 20, "nearest"),
    (13, 17, 40, 33, "nearest"),
    (400, 40, 24, 24, "bilinear"),  # more than 8 times as wide as high: only a part is resized
    (9, 300, 40, 16, "bicubic"),
    (1, 1, 16, 16, "bilinear"),
]
CROP = """async ([data, preprocessing]) => {
    const { openImage } = await import("./image_source.js");
    const { cropCenter } = await import("./preprocessing.js");
    return Array.from(cropCenter(await openImage(await toBlob(data)), preprocessing));
}"""


@pytest.fixture(scope="module")
def digits_page(load_in_browser, exported):
    return load_in_browser(exported("web"))


@pytest.fixture(scope="module")
def digits_network(exported):
    return load(exported("web"))


def random_image(width, height):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (max(height // 4, 1), max(width // 4, 1), 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_resized_and_cropped_pixels_are_equal(case, digits_page):
    width, height, resize, resolution, interpolation = case
    preprocessing = Preprocessing(resolution, resize, interpolation=interpolation)
    data = encode(random_image(width, height))
    expected = preprocessing.crop_center(EncodedImage(data, "")).permute(1, 2, 0).numpy()
    fields = {**vars(preprocessing)}
    pixels = digits_page.evaluate(CROP, data, fields)
    np.testing.assert_array_equal(np.reshape(pixels, expected.shape), expected)


@pytest.mark.parametrize("name", image_files())
def test_inputs_of_files_are_equal(name, digits_page, digits_network):
    """JPEGs that are shrunk at least fourfold are reduced while they are decoded, and then differ by rounding."""
    data = image_files()[name]
    expected = digits_network.preprocess(EncodedImage(data, name))
    inputs = digits_page.preprocess(data)
    levels = np.abs(inputs - expected) * 255 * 0.5  # the standard deviation
    width, height = Image.open(io.BytesIO(data)).size
    is_reduced = name.endswith("jpg") and min(width, height) >= 4 * 32
    assert levels.max() <= (1.01 if is_reduced else 0)


def test_a_photo_of_a_phone(digits_page, digits_network):
    """A JPEG of 12 megapixels, in portrait, whose squares of 8 x 8 pixels do not fill it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(random_image(4001, 3003), "JPEG", quality=85, exif=exif)
    expected = digits_network.preprocess(EncodedImage(data, ""))
    levels = np.abs(digits_page.preprocess(data) - expected) * 255 * 0.5
    assert levels.max() <= 1.01 and levels.mean() < 0.3


def test_sizes_for_detectors(digits_page):
    limits = [(160, 224), (800, 1333), (0, 1333), (333, 333)]
    sizes = [(height, width) for height in (1, 2, 57, 427, 1000) for width in (1, 3, 80, 640, 4001)]
    script = """async ([sizes, limits]) => {
        const { shortSideSize } = await import("./preprocessing.js");
        return limits.flatMap(([shortest, longest]) => sizes.map(([height, width]) => {
            const size = shortSideSize(height, width, { shortest, longest });
            return [size.height, size.width];
        }));
    }"""
    expected = [list(ShortSideResize(*limit).size(*size)) for limit in limits for size in sizes]
    assert digits_page.page.evaluate(script, [sizes, limits]) == expected


def test_canvases_and_image_data(digits_page, digits_network):
    """What a page has on screen is an image, too: as in a PNG file with the same pixels."""
    script = """async () => {
        const canvas = new OffscreenCanvas(90, 60);
        const context = canvas.getContext("2d");
        context.fillStyle = "#d04090";
        context.fillRect(10, 5, 30, 40);
        const images = [canvas, context.getImageData(0, 0, 90, 60), await createImageBitmap(canvas)];
        const inputs = await Promise.all(images.map((image) => predict.preprocess(image)));
        return inputs.map(({ data }) => Array.from(data));
    }"""
    image = Image.new("RGBA", (90, 60))  # transparent, so white
    image.paste("#d04090", (10, 5, 40, 45))
    expected = digits_network.preprocess(image)
    for values in digits_page.page.evaluate(script):
        np.testing.assert_allclose(np.reshape(values, expected.shape), expected, atol=1e-6)
