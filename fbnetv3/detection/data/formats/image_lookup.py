"""Find the images that annotations belong to, and read their sizes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from PIL import Image

from fbnetv3.data.image_folders import is_hidden, is_image_file
from fbnetv3.data.image_rendering import oriented_size

_THREADS = 8


def read_image_sizes(paths: Sequence[Path]) -> list[tuple[int, int] | None]:
    """Return width and height of images as a viewer shows them; None for those that cannot be read.

    Only the headers are read, several at a time.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_read_image_size, paths))


def _read_image_size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return oriented_size(image)
    except Exception:  # Pillow's readers raise almost anything on corrupt bytes; cleaning reports the image
        return None


def image_entry(image_id: int, file_name: str, size: tuple[int, int] | None) -> dict[str, object]:
    """Return an entry of COCO's "images"; without width and height if the image cannot be read."""
    entry: dict[str, object] = {"id": image_id, "file_name": file_name}
    if size is not None:
        entry["width"], entry["height"] = size
    return entry


def name_in(root: Path, path: Path) -> str:
    """Return a path relative to a folder that contains it, else the path itself, with forward slashes."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


class ImageLookup:
    """Finds images by name in some folders; a name without an image's suffix stands for the image of that stem.

    Args:
        folders: folders to search, the first one first; their subfolders are searched for names without a suffix.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = list(dict.fromkeys(folder for folder in folders if folder.is_dir()))

    def find(self, *names: str) -> Path | None:
        """Return the image of the first name that has one; None without one."""
        for name in names:
            name = name.replace("\\", "/")  # of a file written on Windows
            if not is_image_file(name):
                path = self._by_stem.get(name)
                if path is not None:
                    return path
                continue
            for folder in self.folders:
                # False for text that cannot be a file name, for which Path.is_file would raise
                if os.path.isfile(folder / name):
                    return folder / name
        return None

    @cached_property
    def _by_stem(self) -> dict[str, Path | None]:
        """The images by path without suffix and by name without suffix; None if several have that name."""
        by_stem: dict[str, Path | None] = {}
        for root in self.folders:
            for folder, subfolders, files in os.walk(root):
                subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
                for name in sorted(name for name in files if is_image_file(name) and not is_hidden(name)):
                    path = Path(folder, name)
                    stem = path.relative_to(root).with_suffix("").as_posix()
                    if path.stem != stem:
                        by_stem[path.stem] = path if by_stem.get(path.stem, path) == path else None
                    by_stem.setdefault(stem, path)
        return by_stem


def guess_image_root(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """Return the first folder that has the first of some files, or else the first folder."""
    for folder in folders:
        if names and (folder / names[0]).is_file():
            return folder
    return folders[0]
