#!/usr/bin/env python3
"""Compare exported folders in Chromium with the same files in Python, one thread each: `browser.py FOLDER ...`.

The folders come from `--format web`. Times are CPU times for one image, which other processes hardly change: of the
network, which is all that Python does here, and of the preprocessing. Needs Chromium (apt-get install chromium) and
Playwright (pip install playwright).
"""

import argparse
import functools
import http.server
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import torch
from measure import report_comparison, report_value, summarize
from playwright.sync_api import sync_playwright

from fbnetv3.deploy import load

LOAD = """async () => {
    const { load } = await import("./fbnetv3.js");
    window.predict = await load("./", { backend: "wasm" });
    window.image = new ImageData(640, 480);
    image.data.forEach((_, i) => { image.data[i] = i % 4 === 3 ? 255 : (i * 2654435761) >>> 24; });
}"""
PREDICT = "async () => { await predict(image); }"
PREPROCESS = "async () => { await predict.preprocess(image); }"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chromium = shutil.which("chromium") or parser.error(
        "Chromium is not installed: apt-get install chromium"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for folder in args.folders:
            measure_folder(browser, folder, args.rounds)
        browser.close()


def measure_folder(browser, folder, rounds):
    predictor = load(folder)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    batch = predictor.preprocess(image)
    with serve(folder) as address:
        page = browser.new_page()
        page.goto(f"{address}classes.json")
        page.evaluate(LOAD)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        seconds = {"fbnetv3": [], "peer": []}
        preprocessing = []
        for turn in range(rounds + 1):
            preprocess = cpu_seconds(page, session, PREPROCESS)
            predict = cpu_seconds(page, session, PREDICT)
            start = time.process_time()
            predictor.runtime.run(batch)
            peer = time.process_time() - start
            if turn:
                seconds["fbnetv3"].append(predict - preprocess)
                seconds["peer"].append(peer)
                preprocessing.append(1e3 * preprocess)
        page.close()
    report_comparison(
        f"{folder.name} in Chromium, one image", summarize(seconds), peer_name=predictor.runtime.name
    )
    report_value(f"{folder.name}: milliseconds of preprocessing 640 x 480 pixels", np.median(preprocessing))
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    runtime = sum(size for path, size in sizes.items() if path.parent != folder)
    details = f"runtime {runtime / 1e6:.1f} MB, model {sizes[folder / 'model.onnx'] / 1e6:.1f} MB"
    report_value(f"{folder.name}: MB", sum(sizes.values()) / 1e6, details=details)


def cpu_seconds(page, session, script):
    """Run a script, and return the CPU time of the page's thread."""
    before = task_seconds(session)
    page.evaluate(script)
    return task_seconds(session) - before


def task_seconds(session):
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


class serve:  # noqa: N801 - used like a function
    """Serve a folder within a block."""

    def __init__(self, folder):
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
        handler.func.log_message = lambda *_: None
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


if __name__ == "__main__":
    main()
