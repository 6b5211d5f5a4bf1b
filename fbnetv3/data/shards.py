"""Datasets in tar files with webdataset's layout: many images per file, `name.jpg` next to `name.cls`.

The class of `photo.v1.jpg` is in `photo.v1.cls`, or else in `photo.cls`, by webdataset's rule that the name of a sample
ends at the first dot. Images are read by their byte offsets, so order, augmentation and resuming are as exact as with
single files. The index of offsets is built when a shard is first opened, and cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fbnetv3.data.classes.class_names import read_class_names
from fbnetv3.data.corrupt_images import as_corrupt_image_error
from fbnetv3.data.image_folders import SkippedFiles, is_hidden, is_image_file
from fbnetv3.data.image_io import EncodedImage
from fbnetv3.errors import DataError
from fbnetv3.utils.checks import check_int
from fbnetv3.utils.downloads import cache_dir
from fbnetv3.utils.files import atomic_write, make_folder, write_json
from fbnetv3.utils.text import one_line

CLASSES_FILE = "classes.txt"
IMAGES_PER_SHARD = 1000
WINDOW = 16  # shards whose images are shuffled with each other, so that few files are read at a time

# Limits on the contents of untrusted shards; memory is allocated for the names of all classes
_MAX_CLASS_BYTES = 100
_MAX_CLASS_INDEX = 1_000_000

_INDEX_VERSION = 2  # of the rules by which an index is read; a cached one of other rules is not used


class ShardIndex(NamedTuple):
    """Byte offset, length, class index and name of each image of a shard, and numbers of skipped members by reason."""

    offsets: list[int]
    lengths: list[int]
    targets: list[int]
    names: list[str]
    skipped: dict[str, int]


class ShardDataset:
    """The images of several shards. The names of the classes default to their indices.

    Members that are no images are skipped, and their numbers logged in one line.
    """

    def __init__(self, shards: Iterable[Path], classes: list[str] | None = None) -> None:
        self.shards = list(shards)
        # The images of all shards in sequence; shard i ends at `_ends[i]`
        indexes = [_load_index(shard) for shard in self.shards]
        self._counts = [len(index.offsets) for index in indexes]
        self._ends = np.cumsum(self._counts)
        self._offsets = np.concatenate([index.offsets for index in indexes])
        self._lengths = np.concatenate([index.lengths for index in indexes])
        self.targets = np.concatenate([index.targets for index in indexes])
        self._names = [name for index in indexes for name in index.names]
        # Names default to the indices; a list of names must cover all classes
        max_target = int(self.targets.max())
        self.classes = [str(number) for number in range(max_target + 1)] if classes is None else classes
        if max_target >= len(self.classes):
            name = self.image_name(int(self.targets.argmax()))
            raise DataError(
                f"{name}: has class {max_target}, but {CLASSES_FILE} lists only {len(self.classes)} classes"
            )
        self._open_files: dict[int, io.FileIO] = {}
        self.skipped = SkippedFiles()
        for index in indexes:
            self.skipped.reasons.update(index.skipped)
        self.skipped.log(f"{self.shards[0].parent}: {len(self.shards)} shards", len(self))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[EncodedImage, int]:
        name = self.image_name(index)
        with as_corrupt_image_error(name):
            file = self._open(self._shard_of(index))
            data = os.pread(file, int(self._lengths[index]), int(self._offsets[index]))
        return EncodedImage(data, name), int(self.targets[index])

    def image_name(self, index: int) -> str:
        """Return the path of the shard and the name of the image in it."""
        return f"{self.shards[self._shard_of(index)]}:{self._names[index]}"

    def order(self, generator: torch.Generator) -> Tensor:
        """Draw a random order of all images in which neighbors come from few shards, `WINDOW` of them at a time."""
        starts = self._ends - self._counts
        # Shuffle the shards, then the images of each window of shards
        windows = torch.randperm(len(self.shards), generator=generator).split(WINDOW)
        parts = []
        for window in windows:
            indices = torch.cat([torch.arange(starts[shard], self._ends[shard]) for shard in window])
            parts.append(indices[torch.randperm(len(indices), generator=generator)])
        return torch.cat(parts)

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, "right"))

    def _open(self, shard: int) -> int:
        """Return the file descriptor of a shard, which stays open."""
        if shard not in self._open_files:
            if len(self._open_files) > 4 * WINDOW:
                self._open_files.clear()  # keep the number of open files bounded
            self._open_files[shard] = self.shards[shard].open("rb", buffering=0)
        return self._open_files[shard].fileno()

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be passed to worker processes that do not inherit them
        return {**self.__dict__, "_open_files": {}}


def open_shards(folder: Path, names: Sequence[str]) -> ShardDataset:
    """Open the shards of a split: `folder/NAME/*.tar` or `folder/*NAME*.tar` for the first name that has any.

    `folder/classes.txt` may name the classes, one per line.
    """
    candidates = ([*folder.glob(f"{name}/*.tar"), *folder.glob(f"*{name}*.tar")] for name in names)
    visible = ([shard for shard in shards if not is_hidden(shard.name)] for shards in candidates)
    shards = sorted(next(filter(None, visible), []))
    if not shards:
        patterns = f"{names[0]}/*.tar or *{names[0]}*.tar"
        raise DataError(
            f"{folder}: has no shards {patterns}; set DATA.ROOT to the folder that contains them"
        )
    classes_file = folder / CLASSES_FILE
    classes = read_class_names(classes_file) if classes_file.exists() else None
    return ShardDataset(shards, classes)


def write_shards(
    images: Iterable[tuple[bytes, str, int]],
    folder: Path,
    split: str,
    images_per_shard: int = IMAGES_PER_SHARD,
) -> list[Path]:
    """Write images into shards `split-000000.tar` and so on, and return their paths. Each is written atomically.

    Each item of `images` has the content of a file, its suffix such as ".jpg", and the class index.
    """
    check_int(images_per_shard, "images_per_shard", 1)
    make_folder(folder)
    shards: list[Path] = []
    numbered = enumerate(images)
    while chunk := list(itertools.islice(numbered, images_per_shard)):
        shard = folder / f"{split}-{len(shards):06d}.tar"
        with (
            atomic_write(shard) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for number, (image, suffix, target) in chunk:
                for ending, content in ((suffix, image), (".cls", str(target).encode())):
                    member = tarfile.TarInfo(f"{number:08d}{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        shards.append(shard)
    return shards


def _load_index(shard: Path) -> ShardIndex:
    """Return the index of a shard, from the cache if possible."""
    # A shard that is replaced gets another key
    stat = shard.stat()
    key = hashlib.sha256(
        f"{_INDEX_VERSION} {shard.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()
    ).hexdigest()[:32]
    cache_file = cache_dir() / "shards" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return ShardIndex(*json.loads(cache_file.read_text()))
    index = _read_index(shard)
    with contextlib.suppress(OSError):  # without a cache, the next run reads the index again
        make_folder(cache_file.parent)
        write_json(cache_file, index, indent=None)
    return index


def _read_index(shard: Path) -> ShardIndex:
    """Read the index from the shard itself."""
    images: dict[str, tarfile.TarInfo] = {}
    targets: dict[str, int] = {}
    skipped: Counter[str] = Counter()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                _add_to_index(tar, member, images, targets, skipped)
            has_end_marker = tar.offset < shard.stat().st_size
        if not has_end_marker:
            raise DataError(f"{shard}: is truncated; copy it again")
        if not images:
            raise DataError(f"{shard}: has no images; expected webdataset's name.jpg and name.cls")
        classes = _match_classes(images, targets, skipped)
    except _InvalidMemberError as error:
        raise DataError(f"{shard}: {error}") from None
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        raise DataError(f"{shard}: is not a readable tar file of images ({one_line(error, 120)})") from None
    members = [images[name] for name in classes]
    return ShardIndex(
        offsets=[member.offset_data for member in members],
        lengths=[member.size for member in members],
        targets=list(classes.values()),
        names=[member.name for member in members],
        skipped=dict(skipped),
    )


class _InvalidMemberError(Exception):
    """A member of a shard has no class, or its name or class is ambiguous."""


def _add_to_index(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    images: dict[str, tarfile.TarInfo],
    targets: dict[str, int],
    skipped: Counter[str],
) -> None:
    """Add a member of a shard to `images` by its name, or to `targets` by its name without .cls."""
    name = posixpath.normpath(member.name)
    stem, suffix = os.path.splitext(name)
    if member.isdir():
        return
    if any(is_hidden(part) for part in name.split("/") if part != ".."):
        skipped["hidden member{s}"] += 1
    elif not member.isfile():
        skipped["link{s} and special member{s}"] += 1
    elif member.issparse():
        raise tarfile.ReadError(f"{member.name} is a sparse file")
    elif suffix.lower() == ".cls":
        if stem in targets:
            raise _InvalidMemberError(f"has several classes of {stem}; write one .cls member per image")
        targets[stem] = _read_class(tar, member)
    elif is_image_file(name):
        if name in images:
            raise _InvalidMemberError(f"has several members {name}; give each image its own name")
        images[name] = member
    else:
        skipped["member{s} that are no images"] += 1


def _read_class(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    content = tar.extractfile(member)
    assert content is not None  # it is a regular file
    target = int(content.read(_MAX_CLASS_BYTES))
    if not 0 <= target <= _MAX_CLASS_INDEX:
        raise tarfile.ReadError(f"the class {target} of {member.name} is not in [0, {_MAX_CLASS_INDEX}]")
    return target


def _match_classes(images: Iterable[str], targets: dict[str, int], skipped: Counter[str]) -> dict[str, int]:
    """Return the class of each image: that of its own name, or else of its name up to an earlier dot.

    If `x.jpg` has a class, other images of the same sample without one, such as the mask `x.seg.png`, are skipped.
    """
    stems = {name: os.path.splitext(name)[0] for name in images}
    main_images = {stem for stem in stems.values() if stem in targets}
    classes = {}
    for name, stem in stems.items():
        if stem in targets:
            classes[name] = targets[stem]
        elif _sample_name(name) in main_images:
            skipped["additional image{s} of samples"] += 1
        else:
            classes[name] = _class_of_sample(name, targets)
    return classes


def _class_of_sample(name: str, targets: dict[str, int]) -> int:
    """Return the class of an image that has no class of its own name."""
    sample = _sample_name(name)
    stem = os.path.splitext(name)[0]
    shorter_names = []
    while stem != sample:
        stem = os.path.splitext(stem)[0]
        shorter_names.append(stem)
    classes = {targets[stem] for stem in shorter_names if stem in targets}
    if not classes:
        raise _InvalidMemberError(f"{name} has no class, which should be in a .cls file of the same name")
    if len(classes) > 1:
        raise _InvalidMemberError(f"the class of {name} is ambiguous: {sample} has {len(classes)} classes")
    return classes.pop()


def _sample_name(name: str) -> str:
    """Return the name of a webdataset sample, which its members have in common: up to the first dot."""
    folder, slash, file_name = name.rpartition("/")
    return f"{folder}{slash}{file_name.partition('.')[0]}"
