"""Files: written whole or not at all; and the PathManager that every download goes through, with its cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from typing import BinaryIO
from urllib.error import ContentTooShortError, HTTPError
from urllib.parse import urlparse

from iopath.common.download import download as _iopath_download
from iopath.common.file_io import HTTPURLHandler, file_lock
from iopath.common.file_io import PathManager as _PathManager

from fbnetv3.errors import OutputError, UsageError, WeightsError

ZOO_PREFIX = "zoo://"
_URL_PREFIXES = ("http://", "https://", "ftp://")
_TIMEOUT = 60.0  # seconds without an answer
PARTIAL = ".partial_"
"""Begins the name of what is not yet whole."""


class _CachedURLs(HTTPURLHandler):
    """iopath's downloads (a bar, a lock, the file in its place only when it is whole), into our cache."""

    def _get_local_path(self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs: object) -> str:
        place = cached_path(path)
        if force or not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(str(place)):
                if force or not place.is_file():
                    _iopath_download(path, str(place.parent), filename=place.name)
        return str(place)


PathManager = _PathManager()
PathManager.register_handler(_CachedURLs())


def cache_dir() -> Path:
    """Where downloads are kept: `$FBNETV3_CACHE`, else `fbnetv3` in the user's cache folder."""
    if os.environ.get("FBNETV3_CACHE"):
        return Path(os.environ["FBNETV3_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fbnetv3"


def is_url(path: str) -> bool:
    """Whether `path` is an address to download from, and not a local file."""
    return path.startswith(_URL_PREFIXES)


def cached_path(url: str) -> Path:
    """Where the download of `url` is kept, whether it is there yet or not: by host and path.

    Raises:
        UsageError: an address that names no file, or leads out of the cache.
    """
    parsed = urlparse(url)
    parts = parsed.path.strip("/").split("/")
    if not parsed.netloc or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{url}: is not the address of a file")
    if parsed.query:
        parts[-1] = f"{hashlib.sha256(parsed.query.encode()).hexdigest()[:12]}_{parts[-1]}"
    return cache_dir().joinpath(parsed.netloc.replace(":", "_"), *(part[-200:] for part in parts))


def local_path(source: str | os.PathLike, sha256: str | None = None) -> Path:
    """A file on this machine for a path, a URL (downloaded into the cache unless it is there) or a `zoo://` address.

    Raises:
        WeightsError: the download fails; see `download`.
        UnknownNameError: the model zoo has no such entry.
    """
    source = os.fspath(source)
    if is_url(source):
        return download(source, sha256)
    if source.startswith(ZOO_PREFIX):
        import_module("fbnetv3.model_zoo")  # registers its handler; by name, since the zoo lies above this module
        return Path(PathManager.get_local_path(source))
    return Path(source).expanduser()


def download(url: str, sha256: str | None = None) -> Path:
    """Path of the local copy of `url`, downloaded into the cache unless it is there.

    The file appears in the cache only when it is whole; of two processes one downloads and the other waits.

    Args:
        url: what to download.
        sha256: checksum that the file must have, where it is known.

    Raises:
        WeightsError: no network, an error from the server, a file cut short or with another checksum. The
            text names the address, and the path to which a copy can be put by hand.
    """
    place = cached_path(url)
    remedy = f"check the network, or download it elsewhere and put it at {place}"
    if not place.is_file():
        with _quiet(), _explained(url, place, remedy):
            PathManager.get_local_path(url)
    if sha256 is not None and (found := file_sha256(place)) != sha256:
        forget(place)
        raise WeightsError(f"{url}: the file's SHA-256 is {found}, not {sha256}; it was removed: {remedy}")
    return place


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """iopath silent, since what goes wrong is in our own error; and no waiting for ever."""
    log, before = logging.getLogger("iopath"), socket.getdefaulttimeout()
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)
        socket.setdefaulttimeout(_TIMEOUT)
        yield
    finally:
        log.setLevel(level)
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _explained(url: str, place: Path, remedy: str) -> Iterator[None]:
    """What can go wrong with a download, as a `WeightsError` that says what to do."""
    try:
        yield
    except HTTPError as error:
        raise WeightsError(f"{url}: the server answers {error.code} {error.reason}: {remedy}") from None
    except ContentTooShortError:
        raise WeightsError(f"{url}: the download broke off: {remedy}") from None
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        reason = f"{error.filename}: cannot be written ({error.strerror})"
        raise WeightsError(f"{reason}: set FBNETV3_CACHE to a folder of yours") from None
    except (OSError, HTTPException) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise WeightsError(f"{place}: no space left on the disk: free some, or set FBNETV3_CACHE") from None
        cause = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise WeightsError(f"{url}: cannot be downloaded ({cause}): {remedy}") from None


def forget(path: Path) -> bool:
    """Remove a damaged file, if it is one of the cache's. Returns whether it is gone."""
    if cache_dir() not in path.parents:
        return False
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return not path.exists()


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hex."""
    with Path(path).open("rb") as f:
        digest = hashlib.sha256()
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def make_folder(path: Path) -> Path:
    """Make a folder, and those above it, where they are missing.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `path` when it is whole, and leaves no trace if it fails.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL)
        with os.fdopen(handle, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def remove_partial(folder: Path) -> None:
    """Remove what writes that were killed have left in a folder. Not while another process writes there."""
    for path in folder.glob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)
