"""The PathManager that every file and download of this package goes through."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import socket
from http.client import HTTPException
from pathlib import Path
from urllib.error import ContentTooShortError, HTTPError
from urllib.parse import urlparse

from iopath.common.file_io import HTTPURLHandler
from iopath.common.file_io import PathManager as _PathManager

from fbnetv3.errors import WeightsError

PathManager = _PathManager()
PathManager.register_handler(HTTPURLHandler())


def cache_dir() -> Path:
    """Where downloads are kept: `$FBNETV3_CACHE`, else `fbnetv3` in the user's cache folder."""
    if os.environ.get("FBNETV3_CACHE"):
        return Path(os.environ["FBNETV3_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fbnetv3"


def is_url(path: str) -> bool:
    """Whether `path` is an address to download from, and not a local file."""
    return path.startswith(("http://", "https://", "ftp://"))


def cached_path(url: str) -> Path:
    """Where the download of `url` is kept, whether it is there yet or not."""
    folder = urlparse(url).path.lstrip("/").rpartition("/")[0]
    return _host_folder(url) / folder / url.rpartition("/")[2]


def _host_folder(url: str) -> Path:
    return cache_dir() / (urlparse(url).netloc or "local").replace(":", "_")


def download(url: str, sha256: str | None = None, *, timeout: float = 60.0) -> Path:
    """Path of the local copy of `url`, downloaded into the cache unless it is there.

    The file appears in the cache only when it is whole; of two processes one downloads and the other waits.

    Args:
        url: what to download.
        sha256: checksum that the file must have, where it is known.
        timeout: seconds without an answer after which to give up.

    Raises:
        WeightsError: no network, an error from the server, a file cut short or with another checksum. The
            text names the address, and the path to which a copy can be put by hand.
    """
    place = cached_path(url)
    remedy = f"check the network, or download it elsewhere and put it at {place}"
    if not place.is_file():
        _download_to_cache(url, place, remedy, timeout)
    if sha256 is not None and (found := file_sha256(place)) != sha256:
        forget(place)
        raise WeightsError(f"{url}: the file's SHA-256 is {found}, not {sha256}; it was removed: {remedy}")
    return place


def _download_to_cache(url: str, place: Path, remedy: str, timeout: float) -> None:
    log = logging.getLogger("iopath")
    level, before = log.level, socket.getdefaulttimeout()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(timeout)
        log.setLevel(logging.CRITICAL)  # what went wrong is in our own error
        PathManager.get_local_path(url, force=True, cache_dir=str(_host_folder(url)))
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
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise WeightsError(f"{url}: cannot be downloaded ({reason}): {remedy}") from None
    finally:
        socket.setdefaulttimeout(before)
        log.setLevel(level)


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
