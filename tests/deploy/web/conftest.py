"""A web server for exported folders, Chromium, and tabs that have loaded a folder."""

import base64
import functools
import http.server
import shutil
import threading

import numpy as np
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class FolderHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files as `python -m http.server` does, cross-origin isolated or not."""

    isolated = False

    def end_headers(self):
        if self.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def serve():
    """`serve(folder)` returns the address at which a folder is served."""
    servers = []

    def start(folder, isolated=False):
        handler = type("Handler", (FolderHandler,), {"isolated": isolated})
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=folder)
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium, without a window, with a camera that shows a test picture, and an emulated GPU.

    Each module has its own: while Playwright is active, other modules' tests cannot run an event loop.
    """
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    arguments = [
        "--no-sandbox",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        "--enable-unsafe-webgpu",
        "--use-webgpu-adapter=swiftshader",
        "--enable-features=Vulkan",
    ]
    api.expect.set_options(timeout=30_000)  # milliseconds; machines may be busy
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class LoadedPage:
    """A page that has loaded an exported folder with `load`."""

    def __init__(self, page, options=None):
        self.page = page
        page.evaluate(
            """async (options) => {
                const { load } = await import("./fbnetv3.js");
                window.predict = await load("./", options);
                window.toBlob = async (data) => (await fetch(`data:;base64,${data}`)).blob();
            }""",
            options or {},
        )

    def evaluate(self, script, data, *arguments):
        """Evaluate a function of base64 data, which `toBlob` turns into a file, and of other arguments."""
        return self.page.evaluate(script, [base64.b64encode(data).decode(), *arguments])

    def predict(self, data, options=None):
        """Return what `predict` returns for the content of an image file."""
        script = "async ([data, options]) => predict(await toBlob(data), options)"
        return self.evaluate(script, data, options or {})

    def preprocess(self, data):
        """Return the network's input for the content of an image file, as an array."""
        script = """async ([data]) => {
            const { data: values, dims } = await predict.preprocess(await toBlob(data));
            return [Array.from(values), dims];
        }"""
        values, shape = self.evaluate(script, data)
        return np.reshape(values, shape)


@pytest.fixture(scope="module")
def load_in_browser(chromium, serve):
    """`load_in_browser(folder)` loads an exported folder in a new tab, without showing its page."""
    pages = []

    def load(folder, isolated=False, options=None):
        context = chromium.new_context()
        page = context.new_page()
        pages.append(context)
        # A page of the folder's server that runs nothing itself
        page.goto(serve(folder, isolated) + "classes.json")
        return LoadedPage(page, options)

    yield load
    for context in pages:
        context.close()
