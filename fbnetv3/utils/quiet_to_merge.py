"""Silence about what no user can change."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Leaves out what torch has to say about calls in detectron2, which no user can change."""
    fx = logging.getLogger("torch.fx._symbolic_trace")
    level = fx.level
    fx.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid", UserWarning)
            yield
    finally:
        fx.setLevel(level)
