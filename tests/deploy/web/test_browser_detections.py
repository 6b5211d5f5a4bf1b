"""Detectors find in the browser what they find in Python, in pixels of the upright image."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is optional: python tools/install_detectron2.py")

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from playwright.sync_api import expect

from fbnetv3.deploy import load
from fbnetv3.deploy.input_images import sample_detector_images
from fbnetv3.detection.export.detector_export import export_detector
from tests.detection.detectors import calibrated_detector, image, small_config
from tests.web_images import encode, turned

MAX_DIFFERENCE = 0.5  # pixels
NAMES = ["cat", "dog", "bird", "fish", "horse"]


@pytest.fixture(scope="module")
def detector_folder(browser_runtime, tmp_path_factory):
    """The smallest detector, with random weights, exported for the web."""
    folder = tmp_path_factory.mktemp("detector")
    cfg = small_config()
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.INPUT.MAX_SIZE_TEST = 160
    cfg.DATASETS.TEST = ()
    photos = []
    for photo in sample_detector_images()[1:6:4]:
        pixels = np.array(photo.resize((128, 96)))[:, :, ::-1].copy()
        boxes = ((8.0, 8.0, 72.0, 56.0), (70.0, 30.0, 120.0, 90.0))
        photos.append(
            {**image(96, 128, boxes=boxes), "image": torch.from_numpy(pixels).permute(2, 0, 1).float()}
        )
    torch.save({"model": calibrated_detector(cfg, photos, 0.01).state_dict()}, folder / "model.pth")
    exported = export_detector(cfg, folder / "model.pth", folder / "web", classes=NAMES, format="web")
    return exported.folder


def photo_files():
    flower = sample_detector_images()[4]
    return {
        "large.png": encode(flower),
        "small.png": encode(flower.resize((61, 80))),
        "wide.png": encode(flower.crop((0, 100, 640, 180))),
        "unchanged.png": encode(flower.resize((96, 96))),
        "gray.png": encode(flower.convert("L")),
        "turned.jpg": turned(flower.resize((320, 240)), 6, quality=95),
        "large.jpg": encode(flower.resize((1500, 1000)), "JPEG", quality=90),
    }


@pytest.mark.parametrize("name", photo_files())
def test_boxes_are_equal(name, detector_folder, load_in_browser, tmp_path, page):
    data = photo_files()[name]
    (tmp_path / name).write_bytes(data)
    expected = load(detector_folder)(tmp_path / name)
    detections = page.predict(data)
    assert len(detections) == len(expected) > 3
    for detection, other in zip(detections, expected, strict=True):
        assert detection["label"] == other.label and detection["classIndex"] == other.class_index
        assert detection["score"] == pytest.approx(other.score, abs=1e-3)
        assert detection["box"] == pytest.approx(other.box, abs=MAX_DIFFERENCE)


@pytest.fixture(scope="module")
def page(detector_folder, load_in_browser):
    return load_in_browser(detector_folder)


def test_options(page):
    data = photo_files()["large.png"]
    everything = page.predict(data)
    threshold = everything[2]["score"]
    assert page.predict(data, {"threshold": threshold}) == everything[:3]
    assert page.predict(data, {"top": 2}) == everything[:2]


def test_the_page_lists_objects(detector_folder, serve, chromium):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(serve(detector_folder))
    expect(page.get_by_role("button", name="Choose file")).to_be_enabled()
    data = photo_files()["large.png"]
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": data})
    slider = page.get_by_label("Minimum score")
    slider.fill("0")
    expect(page.locator("#results li .swatch").first).to_be_visible()
    assert page.locator("#results li").count() > 1
    slider.fill("1")
    expect(page.locator("#results")).to_have_text("No objects")
    context.close()
