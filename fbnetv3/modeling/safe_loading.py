"""Load checkpoint files safely: no code from the file is executed, and decompression bombs are rejected."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fbnetv3.errors import WeightsError
from fbnetv3.utils.downloads import delete_from_cache, local_path

StateDict = Mapping[str, Tensor]

# Where checkpoints keep their weights, preferred keys first: averaged (EMA) weights before raw ones
_STATE_DICT_KEYS = ("model_ema", "ema", "state_dict", "model", "module")
_MAX_NESTING = 3

_WEB_PAGE_STARTS = (b"<!", b"<html", b"<HTML", b"<?xml")

# The function that unpickles NumPy scalars, under its names in NumPy 1 and 2
_MAKE_SCALAR = np.asarray(0.0)[()].__reduce__()[0]
# Classes of plain values that training scripts store with the weights; none runs code from the file
_HARMLESS_GLOBALS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
    (_MAKE_SCALAR, "numpy.core.multiarray.scalar"),
    (_MAKE_SCALAR, "numpy._core.multiarray.scalar"),
]


def read_state_dict(source: str | os.PathLike, *, sha256: str | None = None) -> StateDict:
    """Read a state dict from a file, URL or `zoo://` entry. `sha256` is the expected checksum of a download."""
    return extract_state_dict(load_checkpoint_file(local_path(source, sha256)), str(source))


def load_checkpoint_file(path: str | os.PathLike) -> object:
    """Load a checkpoint of tensors and plain values onto the CPU. A corrupt download is deleted from the cache."""
    path = Path(path)
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(256).lstrip()
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _reject_archive_bomb(path)
        with torch.serialization.safe_globals(_HARMLESS_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise
    except Exception as error:  # torch and pickle raise almost anything on corrupt files
        if "Unsupported global" in str(error):
            advice = "save only the state dict, or convert the file to safetensors"
            raise WeightsError(
                f"{path}: contains objects other than tensors, which could run code; {advice}"
            ) from None
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


def _reject_archive_bomb(path: Path) -> None:
    """Reject a zip archive that would expand when read. torch.save stores its entries without compression."""
    if not zipfile.is_zipfile(path):
        return  # the format of torch before 1.6
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    is_compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if is_compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise WeightsError("is compressed, or unpacks to more than its size: save it again with torch.save")


def extract_state_dict(checkpoint: object, name: str) -> StateDict:
    """Return the weights of a checkpoint, averaged (EMA) ones if it has them. `name` is its name in error messages."""
    for _ in range(_MAX_NESTING):
        if not isinstance(checkpoint, Mapping):
            break
        inner = [checkpoint[key] for key in _STATE_DICT_KEYS if isinstance(checkpoint.get(key), Mapping)]
        # An EMA that was not used may be stored empty
        inner = [mapping for mapping in inner if mapping]
        if not inner:
            break
        checkpoint = inner[0]
    is_state_dict = isinstance(checkpoint, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in checkpoint.items()
    )
    if not is_state_dict or not checkpoint:
        raise WeightsError(f"{name}: has no state dict (a mapping of names to tensors)")
    state_dict: StateDict = checkpoint  # type: ignore[assignment]
    # DataParallel and DistributedDataParallel prefix all names
    while all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    return state_dict
