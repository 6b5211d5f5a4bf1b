"""Load checkpoint files safely: no code from the file is executed, and decompression bombs are rejected."""

from __future__ import annotations

import argparse
import datetime
import os
import re
import types
import warnings
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch.torch_version import TorchVersion

from fbnetv3.errors import MissingPackageError, WeightsError
from fbnetv3.utils.downloads import delete_from_cache

_WEB_PAGE_STARTS = (b"<!", b"<html", b"<HTML", b"<?xml")

_PATH_CLASSES = {
    "PosixPath": PurePosixPath,
    "PurePosixPath": PurePosixPath,
    "WindowsPath": PureWindowsPath,
    "PureWindowsPath": PureWindowsPath,
}
# The function that unpickles NumPy scalars, under its names in NumPy 1 and 2
_MAKE_SCALAR = np.asarray(0.0)[()].__reduce__()[0]
# Classes of plain values that training scripts store with the weights; none runs code from the file. A pair is what is
# built instead, and the name in the file: packages need not be installed, and a path of any system is plain text here.
_HARMLESS_GLOBALS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    *(datetime.date, datetime.datetime, datetime.timedelta, datetime.timezone),
    *(
        (pure_path, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name, pure_path in _PATH_CLASSES.items()
    ),
    (TorchVersion, "torch.torch_version.TorchVersion"),
    # PyTorch Lightning's hyperparameters
    *(
        (dict, f"{package}.utilities.{module}.AttributeDict")
        for package in ("lightning.fabric", "lightning_fabric", "pytorch_lightning")
        for module in ("data", "parsing")
    ),
    np.dtype,
    *{
        type(np.dtype(code)) for code in "?bBhHiIlLqQefdU"
    },  # numbers and text, but neither objects nor structures
    (_MAKE_SCALAR, "numpy.core.multiarray.scalar"),
    (_MAKE_SCALAR, "numpy._core.multiarray.scalar"),
]


def load_checkpoint_file(path: str | os.PathLike) -> object:
    """Load a checkpoint of tensors and plain values onto the CPU. A corrupt download is deleted from the cache."""
    path = Path(path)
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(256).lstrip()
        if path.suffix == ".safetensors":
            return _load_safetensors(path)
        _check_archive(path)
        with torch.serialization.safe_globals(_HARMLESS_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice for those who wrote the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (MemoryError, MissingPackageError):
        raise
    except Exception as error:  # torch and pickle raise almost anything on corrupt files
        if "Unsupported global" in str(error):
            raise WeightsError(_describe_unsafe_object(path, str(error))) from None
        problem = f"is corrupt or not a checkpoint ({type(error).__name__})"
        if isinstance(error, WeightsError):
            problem = str(error)
        elif start.startswith(_WEB_PAGE_STARTS):
            problem = "is a web page, not weights"
        # A corrupt download would otherwise stay in the cache
        deleted = (
            "; it was deleted from the cache; try downloading it again" if delete_from_cache(path) else ""
        )
        raise WeightsError(f"{path}: {problem}{deleted}") from None


def _load_safetensors(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise MissingPackageError(f"{path} needs safetensors: pip install safetensors") from None
    return load_file(path)


def _describe_unsafe_object(path: Path, message: str) -> str:
    """Return the error for a file with an object that may run code, given torch's message, which has its class."""
    match = re.search(r"GLOBAL (\S+)", message)
    class_name = f" ({match[1]})" if match else ""
    return (
        f"{path}: contains objects other than tensors{class_name}, which could run code; save only the state dict: if "
        f"you trust the file, torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'weights.pth'), "
        "where 'state_dict' is the key of the weights"
    )


def _check_archive(path: Path) -> None:
    """Reject programs, and zip archives that expand when read: torch.save stores its entries without compression."""
    if not zipfile.is_zipfile(path):
        return  # the format of torch before 1.6
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any("/code/__torch__" in entry.filename for entry in entries):
        raise WeightsError(
            "is a TorchScript program, not weights: save torch.jit.load(FILE).state_dict() with torch.save"
        )
    is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if is_compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise WeightsError("is compressed, or unpacks to more than its size: save it again with torch.save")
