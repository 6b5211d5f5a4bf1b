"""Files of class names, and names that several classes share."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence

from fbnetv3.errors import DataError
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)


def read_class_names(file: str | os.PathLike) -> list[str]:
    """Read class names from a file: a JSON list, or one name per line. Repeated names are logged.

    Raises:
        DataError: the file cannot be read, is not such a list, or has empty lines between the names.
    """
    path = expand_path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = (
            json.loads(text)
            if path.suffix == ".json"
            else [line.strip() for line in text.strip().splitlines()]
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and name for name in names)
    ):
        raise DataError(f"{path} is not a list of names: write one name per line, or a JSON list")
    warn_of_repeated_names(names, str(path))
    return names


def warn_of_repeated_names(classes: Sequence[str], source: str) -> None:
    """Log which names several classes share; `source` is where they are from."""
    if repeated := repeated_names(classes):
        logger.warning(
            "%s: several classes have the name %s, so that results cannot tell them apart",
            source,
            first_few(repeated),
        )


def repeated_names(classes: Sequence[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(classes).items() if count > 1]
