"""Count corrupt images, up to a limit."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from fbnetv3.errors import DataError
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)


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
