"""Datasets in tar files, in webdataset's layout: `name.jpg` and `name.cls` beside each other, many to a file.

Each image is read by its place, so that order, augmentation and resuming are as exact as with single files; an index of
the places is made when a file is first seen, and kept in the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from fbnetv3.data.image_io import CorruptImageError, EncodedImage
from fbnetv3.errors import DataError, UsageError
from fbnetv3.utils.downloads import cache_dir

CLASSES_FILE = "classes.txt"
IMAGES_A_SHARD = 1000
# Bytes of a file with a class, and the classes there may be: a list of their names is made.
_LONGEST_CLASS, _MOST_CLASSES = 100, 1_000_000
# Shards whose images are mixed with each other: reading stays within so many files at a time.
WINDOW = 16


class ShardIndex(NamedTuple):
    """Of each image of a shard: where it lies, how long it is, its class, what it is called."""

    offsets: list[int]
    lengths: list[int]
    targets: list[int]
    names: list[str]


class ShardDataset:
    """The images of some shards.

    Args:
        shards: the tar files.
        classes: names of the classes; default: their numbers.

    Raises:
        DataError: a shard is damaged, holds no image, or an image without class or with one that has no name.
    """

    def __init__(self, shards: Iterable[Path], classes: list[str] | None = None) -> None:
        self.shards = list(shards)
        indices = [_index_of(shard) for shard in self.shards]
        self._counts = [len(index.offsets) for index in indices]
        self._ends = np.cumsum(self._counts)
        self._offsets, self._lengths, self._targets = (
            np.concatenate([np.asarray(getattr(index, field), np.int64) for index in indices])
            for field in ("offsets", "lengths", "targets")
        )
        self._names = [name for index in indices for name in index.names]
        most = int(self._targets.max()) + 1
        self.classes = [str(number) for number in range(most)] if classes is None else classes
        if most > len(self.classes):
            place = self.image_name(int(self._targets.argmax()))
            raise DataError(f"{place}: is of class {most - 1}, but {CLASSES_FILE} names {len(self.classes)}")
        self._files: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[EncodedImage, int]:
        name, shard = self.image_name(index), int(np.searchsorted(self._ends, index, "right"))
        try:
            data = os.pread(self._file(shard), int(self._lengths[index]), int(self._offsets[index]))
        except OSError as error:
            raise CorruptImageError(f"{name}: cannot be read ({error.strerror})") from None
        return EncodedImage(data, name), int(self._targets[index])

    def image_name(self, index: int) -> str:
        return f"{self.shards[int(np.searchsorted(self._ends, index, 'right'))]}:{self._names[index]}"

    def order(self, generator: torch.Generator) -> Tensor:
        """A random order of all images in which neighbours come from few shards, WINDOW of them at a time."""
        starts, parts = self._ends - self._counts, []
        for window in torch.randperm(len(self.shards), generator=generator).split(WINDOW):
            found = torch.cat([torch.arange(starts[shard], self._ends[shard]) for shard in window])
            parts.append(found[torch.randperm(len(found), generator=generator)])
        return torch.cat(parts)

    def _file(self, shard: int) -> int:
        """The shard's file, opened once in each process."""
        key = os.getpid(), shard
        if key not in self._files:
            if len(self._files) > 4 * WINDOW:
                self._close()
            self._files[key] = os.open(self.shards[shard], os.O_RDONLY)
        return self._files[key]

    def _close(self) -> None:
        for (process, _), file in self._files.items():
            if process == os.getpid():
                os.close(file)
        self._files.clear()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self._close()


def open_shards(root: str, split: str) -> ShardDataset:
    """The shards of a split: `root/train/*.tar` or `root/*train*.tar`, and the same with val; `root/classes.txt` may
    name the classes, one a line.

    Raises:
        UsageError: no root.
        DataError: there are no shards, or they are damaged.
    """
    if not root:
        raise UsageError("DATA.ROOT is not set: give the folder that holds the shards")
    folder = Path(root).expanduser()
    names = ("train",) if split == "train" else ("val", "test")
    found = ([*folder.glob(f"{name}/*.tar"), *folder.glob(f"*{name}*.tar")] for name in names)
    shards = sorted(next(filter(None, found), []))
    if not shards:
        raise DataError(f"{folder}: has no shards {names[0]}/*.tar or *{names[0]}*.tar; set DATA.ROOT to their folder")
    file, classes = folder / CLASSES_FILE, None
    if file.exists():
        classes = file.read_text().split("\n")
        classes = classes[:-1] if classes[-1] == "" else classes
    return ShardDataset(shards, classes)


def write_shards(
    images: Iterable[tuple[bytes, str, int]], folder: Path, split: str, images_a_shard: int = IMAGES_A_SHARD
) -> list[Path]:
    """Write images into shards `split-000000.tar` and so on.

    Args:
        images: content, file name's ending such as ".jpg", and class of each.
        folder: where to; made if it is not there.
        split: first part of the shards' names.
        images_a_shard: how many to a file.

    Returns:
        The shards. Each has its name when it is whole.

    Raises:
        UsageError: less than one image to a shard.
    """
    if images_a_shard < 1:
        raise UsageError(f"{images_a_shard} images a shard: at least 1 is wanted")
    folder.mkdir(parents=True, exist_ok=True)
    done: list[Path] = []
    numbered = enumerate(images)
    for first in numbered:
        shard = folder / f"{split}-{len(done):06d}.tar"
        partial = shard.with_suffix(".partial")
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, (content, ending, target) in _some(first, numbered, images_a_shard):
                _add(tar, f"{number:08d}{ending}", content)
                _add(tar, f"{number:08d}.cls", str(target).encode())
        partial.replace(shard)
        done.append(shard)
    return done


def _some(first: tuple, rest: Iterator[tuple], count: int) -> Iterator[tuple]:
    yield first
    for _, item in zip(range(count - 1), rest, strict=False):
        yield item


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _index_of(shard: Path) -> ShardIndex:
    """The index of a shard, from the cache if it is there."""
    try:
        state = shard.stat()
    except OSError as error:
        raise DataError(f"{shard}: cannot be read: {error.strerror}") from None
    key = hashlib.sha256(f"{shard.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:32]
    kept = cache_dir() / "shards" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return ShardIndex(*json.loads(kept.read_text()))
    index = _read_index(shard)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time alone
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(index))
        partial.replace(kept)
    return index


def _read_index(shard: Path) -> ShardIndex:
    found: dict[str, tuple[int, int, str]] = {}
    targets: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                key = f"{folder}/{key}"
                if member.issparse():
                    raise tarfile.ReadError(f"{member.name} is a sparse file")
                if ending.lower() == "cls":
                    content = tar.extractfile(member)
                    assert content is not None  # it is a file
                    targets[key] = int(content.read(_LONGEST_CLASS))
                    if targets[key] > _MOST_CLASSES:
                        raise tarfile.ReadError(f"{member.name} says class {targets[key]}, beyond {_MOST_CLASSES}")
                elif f".{ending.lower()}" in IMG_EXTENSIONS:
                    found[key] = (member.offset_data, member.size, member.name)
            if tar.offset >= shard.stat().st_size:  # no mark of the end
                raise tarfile.ReadError("it is cut short")
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        raise DataError(f"{shard}: is no whole shard of images ({' '.join(str(error).split())[:120]})") from None
    if not found:
        raise DataError(f"{shard}: holds no images; webdataset's name.jpg and name.cls are expected")
    for key, (_, _, name) in found.items():
        if targets.get(key, -1) < 0:
            raise DataError(f"{shard}: {name} has no class beside it, in a file that ends in .cls")
    offsets, lengths, names = zip(*found.values(), strict=True)
    return ShardIndex(list(offsets), list(lengths), [targets[key] for key in found], list(names))
