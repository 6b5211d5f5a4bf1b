"""Pickle evaluators by value with cloudpickle, but keep the names of their source files for error messages."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import CodeType
from typing import Any

import cloudpickle


def pickle_with_file_names(value: Any) -> bytes:
    """Pickle any object; functions of scripts and notebooks, closures and lambdas work. `pickle.loads` reads it."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def _reduce_code(code: CodeType) -> tuple[Callable[..., CodeType], tuple[Any, ...]]:
    # cloudpickle 3.1.2 replaces the file's name by <dynamic-code>
    build, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _build_code, (code.co_filename, build, arguments)


def _build_code(filename: str, build: Callable[..., CodeType], arguments: tuple[Any, ...]) -> CodeType:
    return build(*arguments).replace(co_filename=filename)


class _Pickler(cloudpickle.Pickler):
    dispatch_table = cloudpickle.Pickler.dispatch_table.new_child({CodeType: _reduce_code})
