"""ONNX Runtime for browsers: the npm package onnxruntime-web, fetched once with npm, or named by the user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fbnetv3.errors import DataError, MissingPackageError, OutputError, UsageError
from fbnetv3.utils.downloads import cache_dir
from fbnetv3.utils.files import as_output_error, atomic_write, expand_path, file_sha256, make_folder

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"  # of the package's .tgz
SOURCE_VARIABLE = "FBNETV3_ONNXRUNTIME_WEB"
"""Environment variable with a .tgz of the package, or a folder in which it is installed; any version."""

CPU_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
GPU_FILES = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
_FOLDER = "dist"  # of the files in the package
_PACKAGE_FILE = "package.json"
_TIMEOUT = 600.0  # seconds


def fetch_browser_runtime() -> Path:
    """Return the package's .tgz or folder; fetch the .tgz into the cache with npm unless it is there.

    Raises:
        MissingPackageError: there is no npm, or it cannot fetch the package; the message says what to do.
        UsageError: the path in `$FBNETV3_ONNXRUNTIME_WEB` does not exist.
        DataError: the .tgz differs from the pinned one.
    """
    if chosen := os.environ.get(SOURCE_VARIABLE):
        source = expand_path(chosen)
        if not source.exists():
            raise UsageError(
                f"{SOURCE_VARIABLE}: {source} does not exist; name a .tgz or folder of {PACKAGE}"
            )
        return source
    archive = cache_dir() / "npm" / f"{PACKAGE}-{VERSION}.tgz"
    if not archive.is_file():
        make_folder(archive.parent, "set FBNETV3_CACHE to a writable folder")
        _fetch_with_npm(archive)
    if (actual := file_sha256(archive)) != SHA256:
        with as_output_error(archive):
            archive.unlink()
        raise DataError(
            f"{archive}: SHA-256 is {actual}, expected {SHA256}; the file was deleted: try again"
        )
    return archive


def browser_runtime_version() -> str:
    """Return the version of the package, "unknown" if a folder without its package.json was named."""
    source = fetch_browser_runtime()
    if source.is_dir():
        path = source / _PACKAGE_FILE
        return str(json.loads(path.read_text())["version"]) if path.is_file() else "unknown"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / _PACKAGE_FILE
        _copy_from_archive(source, Path(temporary), [_PACKAGE_FILE], "package")
        return str(json.loads(path.read_text())["version"])


def copy_browser_runtime(folder: Path, *, with_gpu: bool) -> None:
    """Copy what a page needs into a new folder: 14 MB; with the runtime for WebGPU, 41 MB."""
    source = fetch_browser_runtime()
    folder.mkdir()
    names = (*CPU_FILES, *GPU_FILES) if with_gpu else CPU_FILES
    if source.is_dir():
        _copy_from_folder(source, folder, names)
    else:
        _copy_from_archive(source, folder, names)


def _fetch_with_npm(archive: Path) -> None:
    advice = (
        f"run `npm pack {PACKAGE}@{VERSION}` on a machine with npm and a network, copy the .tgz here, and set "
        f"{SOURCE_VARIABLE} to its path"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise MissingPackageError(
            f"{PACKAGE} {VERSION} is fetched with npm, which is not installed: install Node.js, or {advice}"
        )
    with tempfile.TemporaryDirectory(dir=archive.parent) as temporary:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", temporary]
        try:
            subprocess.run(
                command, cwd=temporary, check=True, capture_output=True, text=True, timeout=_TIMEOUT
            )
            (packed,) = Path(temporary).glob("*.tgz")
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            cause = lines[0] if lines else "no output"
            raise MissingPackageError(
                f"{PACKAGE} {VERSION}: npm cannot fetch it ({cause}): check the network, or {advice}"
            ) from None
        packed.replace(archive)


def _copy_from_folder(source: Path, folder: Path, names: Sequence[str]) -> None:
    inner = source / _FOLDER if (source / _FOLDER).is_dir() else source
    for name in names:
        if not (inner / name).is_file():
            raise _missing_file(inner / name)
        shutil.copyfile(inner / name, folder / name)


def _copy_from_archive(
    source: Path, folder: Path, names: Sequence[str], inner: str = f"package/{_FOLDER}"
) -> None:
    try:
        with tarfile.open(source) as archive:
            available = set(archive.getnames())
            for name in names:
                member = f"{inner}/{name}"
                if member not in available:
                    raise _missing_file(source / name)
                content = archive.extractfile(member)
                assert content is not None  # of a file
                with atomic_write(folder / name) as f:
                    shutil.copyfileobj(content, f)
    except OutputError:
        raise
    except (tarfile.TarError, EOFError, OSError) as error:  # gzip's errors are OSErrors
        raise DataError(
            f"{source}: is not a .tgz of {PACKAGE} ({error}); set {SOURCE_VARIABLE} to one"
        ) from None


def _missing_file(path: Path) -> DataError:
    return DataError(f"{path}: does not exist; {SOURCE_VARIABLE} must name {PACKAGE} {VERSION} or similar")
