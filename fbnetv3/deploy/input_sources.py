"""Find the images that a command line names: files, folders, patterns, URLs, and standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fbnetv3.data.image_folders import find_image_files
from fbnetv3.data.image_io import EncodedImage, read_encoded_image
from fbnetv3.errors import DataError, WeightsError
from fbnetv3.utils.downloads import cached_path, download, is_url
from fbnetv3.utils.files import expand_path

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class InputImage:
    """An image on a command line, which is read when it is needed."""

    name: str
    """Its path or URL, or "-" for standard input."""
    data: bytes | None = None
    """Content of an image from standard input."""
    relative_name: str = ""
    """Its path in the folder or pattern that names it; the file name of others."""

    def read(self) -> EncodedImage:
        """Read the image; a URL is downloaded each time, because its image may change.

        Raises:
            DataError: the image is missing, corrupt or cannot be downloaded; the message names it.
        """
        if self.data is not None:
            return EncodedImage(self.data, self.name)
        if not is_url(self.name):
            return read_encoded_image(str(expand_path(self.name)))
        try:
            cached_path(self.name).unlink(missing_ok=True)
            path = download(self.name)
        except WeightsError as error:
            raise DataError(str(error)) from None
        return EncodedImage(path.read_bytes(), self.name)


def find_images(sources: Sequence[str], other_suffixes: Collection[str] = ()) -> list[InputImage]:
    """Return the images that the sources name, in their order.

    Args:
        sources: files; folders, which are searched with their subfolders; patterns such as "photos/**/*.jpg"; URLs;
            and "-" for standard input, which is either an image or names of files, one per line.
        other_suffixes: suffixes of files to find in folders besides images, such as ".mp4".

    Raises:
        DataError: a folder has no images, or a pattern matches nothing.
    """
    return [image for source in sources for image in _expand(source, other_suffixes)]


def _expand(source: str, other_suffixes: Collection[str]) -> Iterator[InputImage]:
    if source == STANDARD_INPUT:
        yield from _read_standard_input(sys.stdin.buffer.read())
        return
    path = expand_path(source)
    if is_url(source) or path.is_file():
        yield _single_image(source)
    elif path.is_dir():
        files = find_image_files(path, other_suffixes)
        if not files:
            raise DataError(f"{source}: contains no images")
        yield from (_image_in(path, file) for file in files)
    elif glob.has_magic(source):
        files = [
            Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)
        ]
        if not files:
            raise DataError(f"{source}: matches no file")
        root = _folder_of_pattern(path)
        yield from (_image_in(root, file) for file in files)
    else:
        yield _single_image(source)  # reading it says that it is missing


def _single_image(name: str) -> InputImage:
    file_name = name.partition("?")[0] if is_url(name) else name
    return InputImage(name, relative_name=Path(file_name).name)


def _image_in(root: Path, file: Path) -> InputImage:
    return InputImage(str(file), relative_name=file.relative_to(root).as_posix())


def _folder_of_pattern(pattern: Path) -> Path:
    """Return the folder that all matches of a pattern are in: its parts before the first one with a wildcard."""
    parts = pattern.parts
    end = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:end])


def _read_standard_input(data: bytes) -> list[InputImage]:
    """Return the image, or the files that a text names."""
    image = InputImage(STANDARD_INPUT, data, "standard_input")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return [image]
    if "\0" in text:
        return [image]
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise DataError("standard input is empty: pipe an image or names of files into it")
    return [_single_image(name) for name in names]
