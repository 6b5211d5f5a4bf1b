"""Put the digits network on the page about browsers: exported for the web, in a frame.

Without a network, from which ONNX Runtime for browsers comes, the page says that the demo is not built.
"""

import functools
import html
import logging
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = "browser.md"
FOLDER = "digits_demo"
PLACE = re.compile(r"<!-- demo -->.*?<!-- end of demo -->", re.DOTALL)

logger = logging.getLogger("mkdocs.hooks.browser_demo")


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri != PAGE:
        return markdown
    _, problem = export_demo()
    content = (
        f"The demo was not built with this copy of the site: {html.escape(problem)}"
        if problem
        else f'<iframe class="demo" src="{FOLDER}/index.html" title="Draw a digit" loading="lazy"></iframe>\n\n'
        "The demo above is the exported folder. It needs a web server: of a site on disk, run `python -m http.server`."
    )
    return PLACE.sub(lambda _: content, markdown)


def on_post_build(config):
    folder, problem = export_demo()
    if not problem:
        shutil.copytree(Path(folder.name) / FOLDER, Path(config.site_dir) / FOLDER, dirs_exist_ok=True)


@functools.cache
def export_demo():
    """Export once in this process; return the folder that has it, and why that failed."""
    folder = tempfile.TemporaryDirectory()
    command = [sys.executable, "tools/export_net.py", "--model", "digits/fbnetv3_digits", "--format", "web"]
    done = subprocess.run(
        [*command, "--output", str(Path(folder.name) / FOLDER)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    problem = (
        (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
        if done.returncode
        else ""
    )
    if problem:
        logger.info("the demo for browsers is not built: %s", problem)
    return folder, problem
