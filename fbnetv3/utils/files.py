"""Files and folders: atomic writes, checksums, folder locks."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no fcntl: folders are not locked there
    fcntl = None  # type: ignore[assignment]

from fbnetv3.errors import OutputError, UsageError, UserError

PARTIAL_PREFIX = ".partial_"
"""Prefix of temporary files that `atomic_write` renames when they are complete."""

# Lock files that this process holds
_LOCKED_BY_THIS_PROCESS: set[str] = set()
_LOCK_POLL_SECONDS = 0.02


def expand_path(path: str | os.PathLike) -> Path:
    """Return a path in which "~" or "~user" is replaced by the home folder. Raise a UsageError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise UsageError(
            f"{os.fspath(path)}: {home} has no home folder here; write the full path"
        ) from None


@functools.cache
def temporary_cache_dir() -> Path:
    """Return a folder for caches of users without a writable home folder; nobody else can write to it."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # Windows has none, and all files have owner 0
    folder = Path(tempfile.gettempdir()) / f"fbnetv3_cache_{user}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == user:
            return folder
    # Everybody can create a folder of that name, and put files into it
    return Path(tempfile.mkdtemp(prefix="fbnetv3_cache_"))


def build_output_error(path: str | os.PathLike, error: OSError, advice: str = "") -> OutputError:
    """Build the error for a path that cannot be written; `advice` says what the user can do about it."""
    return OutputError(
        f"{path}: cannot be written: {error.strerror or error}{f'; {advice}' if advice else ''}"
    )


@contextlib.contextmanager
def as_output_error(path: str | os.PathLike, advice: str = "") -> Iterator[None]:
    """Turn errors of the operating system within the block into an `OutputError`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, UserError):  # an OutputError has its message already
            raise
        raise build_output_error(path, error, advice) from error


def make_folder(path: Path, advice: str = "") -> Path:
    """Create a folder and its parents unless they exist; `advice` is appended to the error if that fails."""
    with as_output_error(path, advice):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` only when it is complete; a failure leaves `path` as it was."""
    with as_output_error(path):
        # Opened as any file, so that the umask decides who can read it; a file of tempfile would be private
        temporary = path.parent / f"{PARTIAL_PREFIX}{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as f:
        f.write(text.encode())


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically. None becomes an empty cell; file names that are not UTF-8 keep their bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with atomic_write(path) as f:
        f.write(text.getvalue().encode("utf-8", "surrogateescape"))


def remove_partial_files(folder: Path) -> None:
    """Delete the temporary files of killed writers. Call it only while no other process writes to the folder."""
    for path in folder.glob(f"{PARTIAL_PREFIX}*"):
        path.unlink(missing_ok=True)


def shipped_folder(checkout_name: str, installed_name: str | None = None) -> Path:
    """Return a data folder that ships with the package: next to it in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parent.parent
    installed = package / (installed_name or checkout_name)
    return installed if installed.is_dir() else package.parent / checkout_name


def find_config(file: str | os.PathLike) -> str:
    """Return the path of a config: `file` if it exists, else the one of that name that ships with the package.

    So "configs/digits/fbnetv3_digits.yaml" is found in any folder. Other paths are returned unchanged.
    """
    name = os.fspath(file)
    shipped = shipped_folder("configs") / name.removeprefix("configs/")
    is_missing = not os.path.isabs(name) and not os.path.exists(name)
    return str(shipped) if is_missing and shipped.is_file() else name


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file in hex."""
    with Path(path).open("rb") as f:
        digest = hashlib.sha256()
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class FolderLockedError(UsageError):
    """A folder that another process has locked."""


class FolderLock:
    """An exclusive lock on a folder, held by one process and released when that process ends, even by SIGKILL.

    The lock is `lockf`'s: unlike `flock`, forked DataLoader workers do not inherit it, so a worker that outlives its
    parent by a few seconds does not block the next run. As `lockf` never excludes its own process, the folders that
    this process has locked are remembered.

    Args:
        folder: created if it does not exist.
        holder: what holds such a lock ("training run", "search"), for error messages.
        advice: how to choose a different folder, for error messages.
        wait_seconds: how long to wait for others to release it.
    """

    def __init__(self, folder: Path, holder: str, advice: str, wait_seconds: float = 0.0) -> None:
        self.folder = folder
        self.holder = holder
        self.advice = advice
        self._path = os.path.realpath(folder / "lock")
        self.wait_seconds = wait_seconds
        self._file: BinaryIO | None = None

    def acquire(self) -> None:
        """Take the lock; raise `UsageError` if another process still holds it after `wait_seconds`, or this one."""
        deadline = time.monotonic() + self.wait_seconds
        while True:
            try:
                return self._try_acquire()
            except FolderLockedError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_LOCK_POLL_SECONDS)

    def _try_acquire(self) -> None:
        make_folder(self.folder, self.advice)
        # Check before opening the file: closing any handle of it would release the lock that this process holds
        if self._path in _LOCKED_BY_THIS_PROCESS:
            raise self._already_locked(str(os.getpid()))
        with as_output_error(self.folder, self.advice):
            self._file = Path(self._path).open("a+b")  # noqa: SIM115 (open as long as the lock is held)
        if fcntl is None:
            return
        # Do not wait: report the process that holds the lock
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Such as ENOLCK on a network file system
            if not isinstance(error, (BlockingIOError, PermissionError)):
                self.release()
                raise build_output_error(self._path, error, self.advice) from error
            self._file.seek(0)
            owner = self._file.read(32).decode(errors="replace").strip()
            self.release()
            raise self._already_locked(owner) from None
        _LOCKED_BY_THIS_PROCESS.add(self._path)
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n".encode())
        self._file.flush()

    def release(self) -> None:
        """Release the lock; does nothing if it is not held."""
        if self._file is not None:
            self._file.close()
            self._file = None
            _LOCKED_BY_THIS_PROCESS.discard(self._path)

    def _already_locked(self, owner: str) -> FolderLockedError:
        process = f" (process {owner})" if owner else ""
        return FolderLockedError(
            f"{self.folder}: another {self.holder} is using it{process}: wait for it, or {self.advice}"
        )

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
