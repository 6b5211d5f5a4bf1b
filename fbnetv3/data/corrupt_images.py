"""Errors about corrupt images, and their count up to a limit."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

from PIL import Image, UnidentifiedImageError

from fbnetv3.errors import DataError
from fbnetv3.utils.text import first_few, one_line

logger = logging.getLogger(__name__)


class CorruptImageError(DataError):
    """An image file that is missing, cannot be decoded, or whose values have no defined colors."""


@contextlib.contextmanager
def as_corrupt_image_error(name: str) -> Iterator[None]:
    """Turn any error in reading or decoding an image into a `CorruptImageError` that names it."""
    try:
        yield
    except CorruptImageError:
        raise
    except Exception as error:  # Pillow's readers raise almost anything on corrupt files
        raise CorruptImageError(f"{name}: {_describe(error)}") from None


def _describe(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.DecompressionBombError):
        limit = (
            2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        )  # Pillow warns above its limit, and refuses above twice as much
        return f"has too many pixels to decode safely, more than {limit:.0f} million; shrink it"
    if isinstance(error, UnidentifiedImageError):
        return "corrupt image (not a format that Pillow can read)"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    return f"corrupt image ({one_line(error, 120) or type(error).__name__})"


class CorruptImageCounter:
    """Logs and counts corrupt images, each once, and raises `DataError` if there are more than `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.messages: dict[str, None] = {}  # an ordered set

    def add(self, errors: Iterable[str]) -> None:
        """Add the error messages of a batch's corrupt images."""
        for message in errors:
            if message not in self.messages:
                self.messages[message] = None
                if len(self.messages) <= self.limit:
                    logger.warning("skipped: %s", message)
        if len(self.messages) > self.limit:
            shown = first_few(list(self.messages), separator="; ")
            raise DataError(f"{shown}: repair or remove them, or raise DATA.MAX_CORRUPT (now {self.limit})")
