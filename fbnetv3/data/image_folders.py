"""Search folders for images. All datasets and tools search here, so that they see the same images.

Hidden files and folders are ignored, and a folder with several names is searched once. What is skipped is counted by
reason.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageFile

from fbnetv3.errors import DataError
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

# Formats that Pillow recognizes but cannot decode by itself
_UNREADABLE_FORMATS = {"EPS", "MPEG"}
_REPEATED_FOLDER = "link{s} to a folder searched already"
# Folders that operating systems and cloud drives add
_SYSTEM_FOLDERS = {
    "__MACOSX",
    "@eaDir",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__pycache__",
}


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that count as images, such as ".jpg": those of all formats that Pillow reads."""
    Image.init()  # imports Pillow's readers
    readable = {"MPO"}  # which Pillow opens as JPEG
    for format, (reader, _) in Image.OPEN.items():
        is_stub = isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile)
        if not is_stub and format not in _UNREADABLE_FORMATS:
            readable.add(format)
    return frozenset(
        suffix for suffix, format in Image.registered_extensions().items() if format in readable
    )


def is_image_file(path: str | os.PathLike) -> bool:
    """Return whether a file name has one of `image_suffixes`, in lower or upper case."""
    return os.path.splitext(path)[1].lower() in image_suffixes()


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or a folder that an operating system adds."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


@dataclass
class SkippedFiles:
    """Numbers of skipped files by reason."""

    reasons: Counter[str] = field(default_factory=Counter)  # reasons like "hidden file{s}"
    suffixes: dict[str, None] = field(default_factory=dict)  # of files that are no images; an ordered set
    expected: Collection[str] = ()  # suffixes of files that belong next to images, which are not counted

    def add(self, reason: str, count: int = 1) -> None:
        """Count files with a reason, in which "{s}" is where the plural has an s."""
        self.reasons[reason] += count

    def add_other_suffix(self, name: str) -> None:
        """Count a file whose suffix is not that of an image."""
        if os.path.splitext(name)[1].lower() in self.expected:
            return
        self.add("file{s} without an image suffix")
        self.suffixes[os.path.splitext(name)[1].lower() or "none"] = None

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def __str__(self) -> str:
        counts = []
        for reason, count in self.reasons.items():
            counts.append(f"{count} {reason.format(s='' if count == 1 else 's')}")
            if "suffix" in reason:
                counts[-1] += f" ({first_few(list(self.suffixes))})"
        return f"skipped {', '.join(counts)}"

    def log(self, source: object, num_images: int) -> None:
        """Log one line about a dataset or folder, if anything was skipped."""
        if self:
            logger.warning("%s: %d image%s; %s", source, num_images, "" if num_images == 1 else "s", self)


@dataclass
class ClassFolderScan:
    """The images of a folder with one subfolder per class."""

    classes: list[str]  # names of the class folders, sorted
    images: list[list[str]]  # paths CLASS/.../IMAGE of each class, sorted by folder
    skipped: SkippedFiles

    def require_images(self, root: Path) -> None:
        """Raise a `DataError` if a class has no image."""
        if empty := [name for name, images in zip(self.classes, self.images, strict=True) if not images]:
            problem = f"{root}: no image in the class folder {first_few(empty)}"
            skipped = f" ({self.skipped})" if self.skipped else ""
            raise DataError(f"{problem}; each class needs a folder with images{skipped}")


def find_image_files(
    folder: Path, other_suffixes: Collection[str] = (), *, expected: Collection[str] = ()
) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted by path; what is skipped is logged in one line.

    `other_suffixes`, such as ".mp4", are those of files to find besides images. Files with the suffixes `expected`,
    such as ".txt" of labels, may be skipped silently.
    """
    if not folder.is_dir():
        return []
    skipped = SkippedFiles(expected=expected)
    suffixes = image_suffixes().union(other_suffixes)
    names = sorted(_search(folder, "", skipped, suffixes), key=lambda name: name.split("/"))
    skipped.log(folder, len(names))
    return [folder / name for name in names]


def list_class_folders(root: Path, skipped: SkippedFiles) -> list[str]:
    """Return the names of the class folders in a folder, sorted: its subfolders that are not hidden.

    Files next to them are added to `skipped`.

    Raises:
        DataError: the folder does not exist or cannot be listed.
    """
    content = _list_folder(str(root), skipped, image_suffixes())
    if content.images:
        skipped.add("image{s} outside the class folders", len(content.images))
    return sorted(content.folders + _follow(content.links, str(root), root, skipped))


def scan_class_folders(
    root: Path, classes: Sequence[str] | None = None, skipped: SkippedFiles | None = None
) -> ClassFolderScan:
    """Find the images of all class folders, or only of some.

    Args:
        root: folder that contains the class folders.
        classes: names of class folders; default: all.
        skipped: what has been skipped in listing the class folders, to which more is added.

    Raises:
        DataError: a folder does not exist or cannot be listed.
    """
    skipped = SkippedFiles() if skipped is None else skipped
    names = list_class_folders(root, skipped) if classes is None else list(classes)
    return ClassFolderScan(names, [_search(root, name, skipped) for name in names], skipped)


def _search(
    root: Path, start: str, skipped: SkippedFiles, suffixes: Collection[str] | None = None
) -> list[str]:
    """Return the images in a subfolder of the root, or in all of it (""), as paths relative to the root.

    They are sorted by folder, then by name. `suffixes` are those of images by default.
    """
    suffixes = image_suffixes() if suffixes is None else suffixes
    images: dict[str, list[str]] = {}  # of each folder
    visited = set()
    folders = [start]
    while folders:
        name = folders.pop()
        path = str(root / name)
        try:
            stat = os.stat(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        # Outside the root, links may lead to the same folder
        if (stat.st_dev, stat.st_ino) in visited:
            skipped.add(_REPEATED_FOLDER)
            continue
        visited.add((stat.st_dev, stat.st_ino))
        content = _list_folder(path, skipped, suffixes)
        prefix = f"{name}/" if name else ""
        images[name] = [prefix + image for image in content.images]
        folders += [prefix + folder for folder in content.folders]
        folders += [prefix + link for link in _follow(content.links, path, root, skipped)]
    return [image for name in sorted(images) for image in images[name]]


def _follow(links: list[str], folder: str, root: Path, skipped: SkippedFiles) -> list[str]:
    """Return the links in a folder that lead to folders which are not searched under their own names."""
    followed = []
    for link in links:
        target = os.path.relpath(os.path.realpath(f"{folder}/{link}"), os.path.realpath(root))
        contains_root = all(part in (".", "..") for part in target.split(os.sep))
        is_searched = not any(
            map(is_hidden, target.split(os.sep))
        )  # nor outside, where the path begins with ".."
        if contains_root or is_searched:
            skipped.add(_REPEATED_FOLDER)
        else:
            followed.append(link)
    return followed


class _FolderContent(NamedTuple):
    """Names in a folder, each list sorted."""

    images: list[str]
    folders: list[str]
    links: list[str]  # to folders


def _list_folder(folder: str, skipped: SkippedFiles, suffixes: Collection[str]) -> _FolderContent:
    """List what is not hidden in a folder."""
    content = _FolderContent([], [], [])
    try:
        entries = sorted(os.scandir(folder), key=attrgetter("name"))
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        problem = "no such folder" if is_missing else f"cannot be listed ({error.strerror})"
        raise DataError(f"{folder}: {problem}") from None
    for entry in entries:
        name = entry.name
        is_link = entry.is_symlink()
        if is_hidden(name):
            skipped.add("hidden folder{s}" if entry.is_dir(follow_symlinks=False) else "hidden file{s}")
        elif _is_folder(entry):
            (content.links if is_link else content.folders).append(name)
        elif is_link and not os.path.exists(entry.path):
            skipped.add("broken link{s}")
        elif os.path.splitext(name)[1].lower() not in suffixes:
            skipped.add_other_suffix(name)
        elif not entry.is_file():
            skipped.add("special file{s}")  # such as a pipe, which never ends
        else:
            content.images.append(name)
    return content


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link that leads to itself or where one may not look
        return False
