"""Folders for web servers: an ONNX file with a page and JavaScript that run it in a browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fbnetv3.deploy.formats.onnx_format import OnnxFormat
from fbnetv3.deploy.web.browser_runtime import (
    PACKAGE,
    browser_runtime_version,
    copy_browser_runtime,
    fetch_browser_runtime,
)
from fbnetv3.errors import ExportError

PAGE_FOLDER = Path(__file__).resolve().parent.parent / "web" / "page"
_RUNTIME_FOLDER = "runtime"
_CHANNELS = (1, 3)  # gray and RGB
# Smaller networks take less time on one CPU core than a GPU takes to start
_MIN_BYTES_FOR_GPU = 2_000_000
# Operators without fast kernels for WebGPU: of int8 networks, and of detectors
_CPU_OPERATORS = {"QuantizeLinear", "NonMaxSuppression"}


class WebFormat(OnnxFormat):
    """`model.onnx` with a page, `index.html`, and `fbnetv3.js` for other pages; any static server can serve the folder.

    In Python, ONNX Runtime runs the file.
    """

    def import_packages(self) -> None:
        """Import the packages for ONNX, and fetch ONNX Runtime for browsers."""
        super().import_packages()
        fetch_browser_runtime()

    def package_versions(self) -> dict[str, str]:
        """Return the versions of the packages, and that of ONNX Runtime for browsers."""
        return {**super().package_versions(), PACKAGE: browser_runtime_version()}

    def add_files(self, folder: Path) -> None:
        """Add the page, its JavaScript, and ONNX Runtime for browsers."""
        _check_channels(folder / "preprocessing.json")
        shutil.copytree(PAGE_FOLDER, folder, dirs_exist_ok=True)
        with_gpu = pays_off_on_gpu(folder / self.file_name)
        copy_browser_runtime(folder / _RUNTIME_FOLDER, with_gpu=with_gpu)


def pays_off_on_gpu(path: Path) -> bool:
    """Return whether WebGPU may run an ONNX file faster than the CPU does: a large float network without detection."""
    if path.stat().st_size < _MIN_BYTES_FOR_GPU:
        return False
    import onnx

    graph = onnx.load(path).graph
    return not any(node.op_type in _CPU_OPERATORS for node in graph.node)


def _check_channels(path: Path) -> None:
    # Detectors have no mean: they take RGB
    channels = len(json.loads(path.read_text()).get("mean", "RGB"))
    if channels not in _CHANNELS:
        raise ExportError(
            f"the network takes {channels} channels, but browsers read gray (1) or RGB (3): choose another format"
        )
