"""Downloads: the cache folder, and local paths of URLs and `zoo://` addresses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from urllib.error import ContentTooShortError, HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

from iopath.common.download import download as _iopath_download
from iopath.common.file_io import file_lock

from fbnetv3.errors import DataError, UsageError, WeightsError
from fbnetv3.utils.files import expand_path, file_sha256, temporary_cache_dir
from fbnetv3.utils.logging_setup import quiet_logger

ZOO_PREFIX = "zoo://"
_URL_PREFIXES = ("http://", "https://", "ftp://")
_TIMEOUT = 60.0  # seconds


def cache_dir() -> Path:
    """Return the folder for downloads: `$FBNETV3_CACHE`, or `fbnetv3` in the user's cache folder.

    Users without a home folder, such as those of some containers, get a folder of their own in the temporary folder.
    """
    if os.environ.get("FBNETV3_CACHE"):
        return expand_path(os.environ["FBNETV3_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return expand_path(base) / "fbnetv3"
    except UsageError:
        return temporary_cache_dir()


def is_url(path: str) -> bool:
    """Return whether `path` is a URL rather than a local file."""
    return path.startswith(_URL_PREFIXES)


def cached_path(url: str) -> Path:
    """Return where the download of `url` is cached, whether or not it exists yet."""
    parsed = urlparse(url)
    parts = parsed.path.strip("/").split("/")
    if not parsed.netloc or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{url}: is not the URL of a file")
    # URLs that differ only in their query are different files
    if parsed.query:
        parts[-1] = f"{hashlib.sha256(parsed.query.encode()).hexdigest()[:12]}_{parts[-1]}"
    # A port's colon is not allowed in Windows file names; file systems limit names to 255 bytes
    return cache_dir().joinpath(parsed.netloc.replace(":", "_"), *(part[-200:] for part in parts))


def local_path(source: str | os.PathLike, sha256: str | None = None) -> Path:
    """Return a local file for a path, a URL (downloaded unless cached) or a `zoo://` address.

    `sha256` is the checksum of a download, as for `download`.
    """
    source = os.fspath(source)
    if is_url(source):
        return download(source, sha256)
    if source.startswith(ZOO_PREFIX):
        model_zoo = import_module("fbnetv3.model_zoo")  # by name, because it is a higher layer
        return model_zoo.entry(source.removeprefix(ZOO_PREFIX)).local_weights()
    return expand_path(source)


def download(url: str, sha256: str | None = None) -> Path:
    """Download `url` into the cache unless it is there, verify its checksum if one is given, and return its path.

    `sha256` may be the beginning of the checksum, as in file names that end in 8 digits of it, such as timm's.

    The file appears in the cache only when it is complete. If two processes ask for it, one downloads it and the
    other waits.

    Raises:
        WeightsError: the download failed, or its checksum is different. The message names the URL and the path where a
            copy can be placed by hand.
    """
    target = cached_path(url)
    advice = f"check the network, or download it elsewhere and place it at {target}"
    if not target.is_file():
        previous_timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_TIMEOUT)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # iopath returns at once if another process has downloaded the file while this one waited for the lock
            with quiet_logger("iopath"), file_lock(str(target)):
                _iopath_download(url, str(target.parent), filename=target.name)
        except (OSError, HTTPException) as error:
            raise WeightsError(_describe_failure(error, url, target, advice)) from None
        finally:
            socket.setdefaulttimeout(previous_timeout)
    if sha256 is not None and not (actual := file_sha256(target)).startswith(sha256):
        deleted = "the file was deleted" if delete_from_cache(target) else f"delete {target}"
        raise WeightsError(f"{url}: SHA-256 is {actual}, expected {sha256}; {deleted}: {advice}")
    return target


def read_url(url: str) -> bytes:
    """Download `url` and return its content, without caching it.

    Raises:
        DataError: the download failed; the message names the URL.
    """
    try:
        with urlopen(url, timeout=_TIMEOUT) as response:
            content: bytes = response.read()
    except HTTPError as error:
        raise DataError(f"{url}: the server returned {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:
        cause = getattr(error, "reason", None) or error
        raise DataError(f"{url}: download failed ({cause}): check the address and the network") from None
    return content


def _describe_failure(error: OSError | HTTPException, url: str, target: Path, advice: str) -> str:
    if isinstance(error, HTTPError):
        return f"{url}: the server returned {error.code} {error.reason}: {advice}"
    if isinstance(error, ContentTooShortError):
        return f"{url}: the download was truncated: {advice}"
    # Errors of files have the file's name, in contrast to those of the network
    if isinstance(error, OSError) and error.filename and error.errno != errno.ENOSPC:
        return (
            f"{error.filename}: cannot be written: {error.strerror}; set FBNETV3_CACHE to a writable folder"
        )
    if getattr(error, "errno", None) == errno.ENOSPC:
        return f"{target}: no space left on the disk: free some, or set FBNETV3_CACHE"
    cause = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return f"{url}: download failed ({cause}): {advice}"


def delete_from_cache(path: Path) -> bool:
    """Delete a corrupt download; files outside the cache are left alone. Return whether the file is gone."""
    if cache_dir() not in path.parents:
        return False
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return not path.exists()
