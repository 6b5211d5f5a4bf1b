"""Networks in the browser predict what they predict in Python."""

import base64

import numpy as np
import pytest
from PIL import Image

from fbnetv3.deploy import PrecisionSettings, export_classifier, load
from fbnetv3.deploy.formats import web_format
from fbnetv3.errors import ExportError
from tests.web_images import encode, turned

MAX_DIFFERENCE = 1e-3  # of a probability
# In int8, a pixel of a reduced JPEG that is rounded differently moves values by a whole step
MAX_INT8_DIFFERENCE = 5e-3


def digit_files(images):
    """Encode digits, each in another way: enlarged, turned by EXIF, transparent, in color, in several formats."""
    encoders = [
        encode,
        lambda image: encode(image.resize((77, 77)), "JPEG", quality=95),
        lambda image: turned(image.resize((64, 64)).transpose(Image.Transpose.ROTATE_90), 6, quality=95),
        lambda image: turned(image.transpose(Image.Transpose.ROTATE_180), 3, "WEBP", lossless=True),
        lambda image: encode(image.convert("RGB").resize((200, 200)), "WEBP", quality=90),
        lambda image: encode(Image.merge("LA", (image, image.point(lambda value: 255 - value // 2)))),
        lambda image: encode(image.convert("P")),
        lambda image: encode(image.resize((300, 280)), "JPEG", quality=90),
        lambda image: encode(image.resize((40, 61)), "PNG"),
        lambda image: encode(image.convert("RGBA"), "GIF"),
    ]
    return [encoders[i % len(encoders)](image) for i, image in enumerate(images)]


@pytest.fixture(scope="module")
def files(held_out, tmp_path_factory):
    """20 image files, named by their number."""
    folder = tmp_path_factory.mktemp("files")
    images, _ = held_out
    paths = []
    for i, data in enumerate(digit_files(images[:20])):
        paths.append(folder / str(i))
        paths[-1].write_bytes(data)
    return paths


def assert_same_predictions(page, folder, files, max_difference=MAX_DIFFERENCE):
    network = load(folder)
    for path, expected in zip(files, network(files, top=10), strict=True):
        predictions = page.predict(path.read_bytes(), {"top": 10})
        assert predictions[0]["label"] == expected[0].label
        assert predictions[0]["classIndex"] == expected[0].class_index
        probabilities = {entry["label"]: entry["probability"] for entry in predictions}
        for entry in expected:
            assert probabilities[entry.label] == pytest.approx(entry.probability, abs=max_difference)


def test_20_images_in_float32(exported, load_in_browser, files):
    assert_same_predictions(load_in_browser(exported("web")), exported("web"), files)


def test_20_images_in_int8(digits, held_out, load_in_browser, files, browser_runtime, tmp_path):
    images, targets = held_out
    precision = PrecisionSettings("int8", images[:20], targets[:20], calibration=images[20:])
    export_classifier(
        digits.model,
        digits.preprocessing,
        digits.classes,
        tmp_path / "int8",
        format="web",
        precision=precision,
    )
    page = load_in_browser(tmp_path / "int8")
    assert_same_predictions(page, tmp_path / "int8", files, MAX_INT8_DIFFERENCE)


def test_threads_on_isolated_pages(exported, load_in_browser, files):
    page = load_in_browser(exported("web"), isolated=True)
    assert page.page.evaluate("predict.threads === Math.min(4, navigator.hardwareConcurrency)")
    assert_same_predictions(page, exported("web"), files[:2])


def test_webgpu(digits, load_in_browser, files, browser_runtime, tmp_path, monkeypatch):
    """On a GPU that Chromium emulates, and only if asked for: emulated ones are slower than WebAssembly."""
    monkeypatch.setattr(web_format, "_MIN_BYTES_FOR_GPU", 0)
    folder = tmp_path / "web"
    export_classifier(digits.model, digits.preprocessing, digits.classes, folder, format="web")
    page = load_in_browser(folder)
    assert page.page.evaluate("predict.backend") == "wasm"
    has_gpu = "Boolean(await navigator.gpu?.requestAdapter())"
    if not page.page.evaluate(f"(async () => {has_gpu})()"):
        pytest.skip("this Chromium does not emulate a GPU")
    page = load_in_browser(folder, options={"backend": "webgpu"})
    assert page.page.evaluate("predict.backend") == "webgpu"
    assert_same_predictions(page, folder, files[:1])


def test_several_labels_per_image(digits, load_in_browser, files, browser_runtime, tmp_path):
    folder = tmp_path / "web"
    export_classifier(
        digits.model, digits.preprocessing, digits.classes, folder, format="web", multi_label=True
    )
    network = load(folder)
    page = load_in_browser(folder)
    for threshold in (None, 0.2):
        expected = network(files[0], threshold=threshold)
        predictions = page.predict(files[0].read_bytes(), {"threshold": threshold} if threshold else {})
        assert [entry["label"] for entry in predictions] == [entry.label for entry in expected]
        np.testing.assert_allclose(
            [entry["probability"] for entry in predictions],
            [entry.probability for entry in expected],
            atol=MAX_DIFFERENCE,
        )


def test_two_networks_in_a_page(exported, load_in_browser):
    """Loaded at the same time, and used at the same time."""
    page = load_in_browser(exported("web")).page
    script = """async () => {
        const { load } = await import("./fbnetv3.js");
        const networks = await Promise.all([load("./"), load("./")]);
        const image = new ImageData(8, 8);
        const results = await Promise.all([...networks, ...networks].map((predict) => predict(image)));
        return results.map(([{ label }]) => label);
    }"""
    labels = page.evaluate(script)
    assert len(labels) == 4 and len(set(labels)) == 1


def test_in_a_worker(exported, load_in_browser, files):
    page = load_in_browser(exported("web")).page
    script = """async (data) => {
        const source = `import { load } from "${new URL("fbnetv3.js", location.href).href}";
            const predict = await load("./");
            onmessage = async ({ data }) => postMessage(await predict(data));
            postMessage("ready");`;
        const script = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
        const worker = new Worker(script, { type: "module" });
        const next = () => new Promise((resolve) => { worker.onmessage = ({ data }) => resolve(data); });
        await next();
        worker.postMessage(await toBlob(data));
        const [{ label }] = await next();
        return label;
    }"""
    label = page.evaluate(script, base64.b64encode(files[0].read_bytes()).decode())
    assert label == load(exported("web"))(files[0], top=1)[0].label


def test_errors_say_what_to_do(exported, load_in_browser):
    page = load_in_browser(exported("web")).page
    message = page.evaluate("predict(new Blob(['no image'])).then(() => '', (error) => error.message)")
    assert message == "The file is not an image that this browser can read. Try a JPEG, PNG or WebP file."
    message = page.evaluate("predict('nowhere.png').then(() => '', (error) => error.message)")
    assert message == "nowhere.png: the server returned 404."
    script = """async (options) => {
        const { load } = await import("./fbnetv3.js");
        return load("./", options).then(() => "", (error) => error.message);
    }"""
    assert page.evaluate(script, {"backend": "cuda"}) == 'backend "cuda" must be "auto", "wasm" or "webgpu"'
    assert "has no runtime for WebGPU" in page.evaluate(script, {"backend": "webgpu"})


def test_other_channels_are_refused(digits, browser_runtime, tmp_path):
    (tmp_path / "preprocessing.json").write_text('{"mean": [0.5, 0.5, 0.5, 0.5]}')
    with pytest.raises(ExportError, match="takes 4 channels, but browsers read gray .1. or RGB .3."):
        web_format.WebFormat().add_files(tmp_path)


def test_images_of_other_sites(exported, load_in_browser, serve, files):
    """Another port is another site."""
    other = serve(files[0].parent)
    script = """async (address) => {
        const image = new Image();
        image.src = address;
        await image.decode();
        return predict(image).then(() => "", (error) => error.message);
    }"""
    message = load_in_browser(exported("web")).page.evaluate(script, f"{other}0")
    assert message == "The image is from another site, which does not let this page read its pixels (CORS)."
