"""The exported page, used as people use it."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from playwright.sync_api import expect

from tests.web_images import encode

SEVEN = [[(0.28, 0.2), (0.72, 0.2), (0.45, 0.85)], [(0.38, 0.5), (0.68, 0.5)]]
ZERO = [[(0.5, 0.15), (0.3, 0.35), (0.3, 0.65), (0.5, 0.85), (0.7, 0.65), (0.7, 0.35), (0.5, 0.15)]]


@pytest.fixture(scope="module")
def address(exported, serve):
    return serve(exported("web"))


@pytest.fixture
def open_page(chromium):
    """`open_page(address)` opens it in a new tab, and fails if a script fails."""
    contexts = []
    errors = []

    def open_tab(address, width=1100, **options):
        context = chromium.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert errors == []


def draw(page, strokes):
    """Draw lines, whose points are fractions of the canvas, with the mouse."""
    box = page.locator("#pad").bounding_box()
    for stroke in strokes:
        for i, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
            if i == 0:
                page.mouse.down()
        page.mouse.up()


def best(page):
    return page.locator("#results li").first


def test_a_drawn_seven_is_recognized(address, open_page):
    page = open_page(address)
    expect(page.locator("#status")).to_contain_text("Draw something")
    draw(page, SEVEN)
    expect(best(page)).to_contain_text("7")
    expect(page.locator("#status")).to_contain_text("WebAssembly, 1 thread")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#results li")).to_have_count(0)
    draw(page, ZERO)
    expect(best(page)).to_contain_text("0")


def test_files_are_chosen_dropped_and_pasted(address, open_page, held_out):
    page = open_page(address)
    expect(page.get_by_role("button", name="Choose file")).to_be_enabled()
    (first, second, third), (_, other, another) = held_out[0][:3], held_out[1][:3]
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": encode(first)})
    expect(best(page)).to_contain_text("7")
    expect(page.locator("#picture")).to_be_visible()
    for kind, image, target in (("drop", second, other), ("paste", third, another)):
        transfer = page.evaluate_handle(
            """(values) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(values)], "digit.png", { type: "image/png" }));
                return transfer;
            }""",
            list(encode(image)),
        )
        event = "DragEvent" if kind == "drop" else "ClipboardEvent"
        field = "dataTransfer" if kind == "drop" else "clipboardData"
        page.evaluate(
            f"""(transfer) => document.dispatchEvent(
                new {event}("{kind}", {{ {field}: transfer, bubbles: true, cancelable: true }}))""",
            transfer,
        )
        expect(best(page)).to_contain_text(str(target))


def test_a_file_that_is_not_an_image(address, open_page):
    page = open_page(address)
    expect(page.get_by_role("button", name="Choose file")).to_be_enabled()
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"text"})
    expect(page.get_by_role("alert")).to_have_text(
        "notes.txt is not an image that this browser can read. Try a JPEG, PNG or WebP file."
    )
    draw_button = page.get_by_role("button", name="Draw")
    draw_button.click()
    draw(page, ZERO)
    expect(page.get_by_role("alert")).to_be_hidden()  # it is about the picture before


def test_a_corrupt_folder_says_so(exported, serve, open_page, tmp_path):
    for path in exported("web").glob("*.*"):
        if path.name != "model.onnx":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    page = open_page(serve(tmp_path))
    expect(page.get_by_role("alert")).to_have_text("/model.onnx: the server returned 404.")


def test_it_asks_nothing_of_other_servers(address, open_page, chromium):
    context = chromium.new_context()
    addresses = []
    page = context.new_page()
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(address)
    expect(page.locator("#status")).to_contain_text("Draw something")
    draw(page, ZERO)
    expect(page.locator("#results li")).to_have_count(5)
    context.close()
    assert len(addresses) > 10
    assert [url for url in addresses if not url.startswith((address, "data:", "blob:"))] == []


@pytest.mark.parametrize("width", [320, 390, 1100])
def test_it_fits_phones(address, open_page, width):
    page = open_page(address, width=width)
    expect(page.locator("#status")).to_contain_text("Draw something")
    draw(page, SEVEN)
    expect(best(page)).to_contain_text("7")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Buttons are large enough for fingers
    assert all(button.bounding_box()["height"] >= 40 for button in page.get_by_role("button").all())


def test_dark_mode(address, open_page):
    def brightness(scheme):
        page = open_page(address, color_scheme=scheme)
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return np.mean([int(value) for value in color.removeprefix("rgb(").rstrip(")").split(",")])

    assert brightness("dark") < 50 < 200 < brightness("light")


def test_opened_from_disk_it_says_what_to_do(exported, open_page):
    page = open_page((exported("web") / "index.html").as_uri())
    expect(page.get_by_role("alert")).to_contain_text("python -m http.server")


def test_another_page_embeds_it(exported, serve, open_page, held_out, tmp_path):
    """A page in the folder above the exported one, with the script of docs/browser.md."""
    (tmp_path / "network").symlink_to(exported("web"))
    (tmp_path / "digit.png").write_bytes(encode(held_out[0][0]))
    (tmp_path / "index.html").write_text(
        """<!doctype html>
        <img id="photo" src="digit.png" alt=""><p id="answer"></p>
        <script type="module">
        import { load } from "./network/fbnetv3.js";
        const predict = await load("./network/");
        const [best] = await predict(document.getElementById("photo"));
        document.getElementById("answer").textContent = best.label;
        </script>"""
    )
    page = open_page(serve(tmp_path))
    expect(page.locator("#answer")).to_have_text("7")


def test_the_camera_of_networks_for_photos(load_in_browser, serve, open_page, rgb_folder):
    page = open_page(serve(rgb_folder), permissions=["camera"])
    camera = page.get_by_role("button", name="Camera")
    expect(camera).to_be_visible()
    camera.click()
    expect(page.locator("#results li")).to_have_count(3)
    expect(page.locator("#picture")).to_be_visible()
    width = page.evaluate("document.getElementById('picture').width")
    assert width == 1280  # the picture of the emulated camera, 640 x 480, enlarged
    camera.click()
    expect(camera).to_have_attribute("aria-pressed", "false")


@pytest.fixture(scope="module")
def rgb_folder(browser_runtime, tmp_path_factory):
    """A network for photos of one layer."""
    import torch
    from torch import nn

    from fbnetv3.data import Preprocessing
    from fbnetv3.deploy import export_classifier

    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    folder = tmp_path_factory.mktemp("rgb") / "web"
    export_classifier(nn.Sequential(*layers), Preprocessing(64, 72), ["a", "b", "c"], folder, format="web")
    return folder


def test_photos_are_shown_upright(serve, open_page, rgb_folder):
    """The stored pixels lie on their side: red is on the left."""
    page = open_page(serve(rgb_folder))
    expect(page.get_by_role("button", name="Choose file")).to_be_enabled()
    image = Image.new("RGB", (60, 40), "blue")
    image.paste("red", (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: red goes to the top
    data = encode(image, "JPEG", exif=exif, quality=95)
    page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": data})
    expect(page.locator("#results li")).to_have_count(3)
    size, top, bottom = page.evaluate(
        """() => {
            const canvas = document.getElementById("picture");
            const pixel = (y) => Array.from(canvas.getContext("2d").getImageData(canvas.width / 2, y, 1, 1).data);
            return [[canvas.width, canvas.height], pixel(20), pixel(canvas.height - 20)];
        }"""
    )
    assert size == [160, 240]
    assert top[0] > 200 > 50 > top[2] and bottom[2] > 200 > 50 > bottom[0]
