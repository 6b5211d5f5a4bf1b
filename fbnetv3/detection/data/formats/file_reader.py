"""Base of the readers of formats with one file per split, alone or in a folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from fbnetv3.detection.data.formats.annotation_source import SPLIT_NAMES, AnnotationReader, AnnotationSource
from fbnetv3.errors import DataError


class FileReader(AnnotationReader):
    """Finds the file of a split; subclasses read it."""

    suffixes: Sequence[str]
    """Suffixes of the files, in lower case; the first one is that of examples in messages."""
    split_patterns: Sequence[str]
    """Patterns of a split's file in a folder, with {} for the name of the split; the first one is preferred."""

    @abstractmethod
    def is_content_known(self, file: Path) -> bool:
        """Return whether the content of a file with a right suffix looks like this format."""

    @abstractmethod
    def find_single_files(self, folder: Path) -> list[Path]:
        """Return the file of a folder that is one split; an empty list if there is none or it is not clear which."""

    def recognizes(self, path: Path) -> bool:
        """Return whether this is a file of the format, or a folder with such files."""
        in_folder = [] if path.is_file() else [*self._split_files(path).values()]
        files = [path] if path.is_file() else in_folder or self.find_single_files(path)
        return any(file.suffix.lower() in self.suffixes and self.is_content_known(file) for file in files)

    def find_splits(self, path: Path) -> list[str]:
        """Return the splits of a folder that have a file."""
        return list(self._split_files(path)) if path.is_dir() else []

    def find_file(self, source: AnnotationSource) -> Path:
        """Return the file of a resolved source.

        Raises:
            DataError: the folder has none.
        """
        path = source.annotations
        if path.is_file():
            return path
        files = [self._split_files(path)[source.split]] if source.split else self.find_single_files(path)
        if not files:
            suffix = self.suffixes[0]
            raise DataError(
                f"{path}: has no annotations, such as train{suffix}; name the {suffix[1:].upper()} file"
            )
        return files[0]

    def _split_files(self, folder: Path) -> dict[str, Path]:
        """Return the files of a folder by split."""
        files: dict[str, Path] = {}
        for split, names in SPLIT_NAMES.items():
            patterns = [pattern.format(name) for name in names for pattern in self.split_patterns]
            matches = (file for pattern in patterns for file in sorted(folder.glob(pattern)))
            if file := next((file for file in matches if file.is_file()), None):
                files[split] = file
        return files
