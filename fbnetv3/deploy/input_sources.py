"""Find the images that a command line names: files, folders, patterns, URLs, and standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fbnetv3.data.image_folders import find_image_files
from fbnetv3.data.image_io import EncodedImage, read_encoded_image
from fbnetv3.errors import DataError
from fbnetv3.utils.downloads import is_url, read_url
from fbnetv3.utils.files import expand_path

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class InputImage:
    """An image on a command line, which is read when it is needed."""

    name: str
    """Its path or URL, or "-" for standard input."""
    data: bytes | None = None
    """Content of an image from standard input."""

    def read(self) -> EncodedImage:
        """Read the image; a URL is downloaded each time and not cached, because its image may change.

        Raises:
            DataError: the image is missing, corrupt or cannot be downloaded; the message names it.
        """
        if self.data is not None:
            return EncodedImage(self.data, self.name)
        if is_url(self.name):
            return EncodedImage(read_url(self.name), self.name)
        return read_encoded_image(str(expand_path(self.name)))


def find_images(sources: Sequence[str]) -> list[InputImage]:
    """Return the images that the sources name, in their order.

    Args:
        sources: files; folders, which are searched with their subfolders; patterns such as "photos/**/*.jpg"; URLs;
            and "-" for standard input, which is either an image or names of files, one per line.

    Raises:
        DataError: a folder has no images, or a pattern matches nothing.
    """
    return [image for source in sources for image in _expand(source)]


def _expand(source: str) -> Iterator[InputImage]:
    if source == STANDARD_INPUT:
        yield from _read_standard_input(sys.stdin.buffer.read())
        return
    path = expand_path(source)
    if is_url(source) or path.is_file():
        yield InputImage(source)
    elif path.is_dir():
        files = find_image_files(path)
        if not files:
            raise DataError(f"{source}: contains no images")
        yield from (InputImage(str(file)) for file in files)
    elif glob.has_magic(source):
        files = [
            Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)
        ]
        if not files:
            raise DataError(f"{source}: matches no file")
        yield from (InputImage(str(file)) for file in files)
    else:
        yield InputImage(source)  # reading it says that it is missing


def _read_standard_input(data: bytes) -> list[InputImage]:
    """Return the image, or the files that a text names."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return [InputImage(STANDARD_INPUT, data)]
    if "\0" in text:
        return [InputImage(STANDARD_INPUT, data)]
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise DataError("standard input is empty: pipe an image or names of files into it")
    return [InputImage(name) for name in names]
