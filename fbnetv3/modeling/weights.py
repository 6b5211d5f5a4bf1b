"""Weights from files, addresses and state dicts: in our layout, the authors' or timm's."""

from __future__ import annotations

import argparse
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fbnetv3.arch import ArchDef
from fbnetv3.arch.block_specs import MBConvSpec
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.network import Features, Trunk
from fbnetv3.utils.downloads import delete_from_cache, local_path

logger = logging.getLogger(__name__)

StateDict = Mapping[str, Tensor]

_BATCHNORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_SHOWN = 5
# Plain values that training scripts leave beside the weights; building them runs no code of the file's.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64")),
    *((np.asarray(0.0)[()].__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did: the layout it found, and whether the classifier's head was loaded too."""

    layout: str
    head: bool


def load_weights(model: nn.Module, source: str | os.PathLike | Mapping, *, sha256: str | None = None) -> LoadReport:
    """Load weights into a network of ours; every weight of it must be there.

    Args:
        model: from `create_model`: a classifier, or a `features_only` network.
        source: a file, a URL, a `zoo://` entry, or a state dict; in our layout, the authors' (mobile-vision
            classifiers; EMA weights preferred) or timm's. Another number of classes keeps the trunk and warns.
        sha256: checksum that the file must have.

    Returns:
        The layout that was found, and whether the head was loaded.

    Raises:
        WeightsError: the file is missing, damaged, not weights, unsafe to load, or made for another network; then
            the text lists keys and shapes, shortened. The network keeps the weights that it had.
    """
    name = source if isinstance(source, (str, os.PathLike)) else "the state dict"
    found = read_state_dict(source, sha256=sha256) if name is source else extract_state_dict(source, str(name))
    layout = _layout(found, str(name))
    wanted = model.state_dict()
    given = dict(found) if layout == "fbnetv3" else _convert(found, cast("ArchDef", model.arch), layout, str(name))
    given = _fit_prefix(given, model)
    head = _drop_foreign_head(given, wanted, str(name))
    _check(given, wanted, str(name))
    model.load_state_dict({**given, **{k: v for k, v in wanted.items() if k not in given}})
    return LoadReport(layout, head)


def load_trunk(
    trunk: Trunk, source: str | os.PathLike | Mapping, *, classifier: ArchDef | None = None, skip: int = 0
) -> None:
    """Load a classifier's weights into a part of its blocks, such as the trunk or the box head of a detector.

    Args:
        trunk: the part; its blocks follow each other as in the classifier.
        source: the classifier's weights, in every form that `load_weights` takes.
        classifier: the whole network's architecture; default: that of `trunk`.
        skip: how many of the classifier's first blocks come before the part.

    Raises:
        WeightsError: as for `load_weights`; the part keeps the weights that it had.
    """
    name = str(source) if isinstance(source, (str, os.PathLike)) else "the state dict"
    found = extract_state_dict(source, name) if isinstance(source, Mapping) else read_state_dict(source)
    defn = trunk.arch if classifier is None else classifier
    layout = _layout(found, name)
    converted = dict(found) if layout == "fbnetv3" else _convert(found, defn, layout, name)
    places = {
        f"stages.{theirs.name}": f"stages.{ours.name}"
        for theirs, ours in zip(defn.blocks()[skip:], trunk.arch.blocks(), strict=False)
    }
    wanted, given = trunk.state_dict(), {}
    for key, value in converted.items():
        block, tensor = _block_and_tensor(key.removeprefix("backbone."))
        if (ours := f"{places.get(block)}.{tensor}") in wanted:
            given[ours] = value
    _check(given, wanted, name)
    trunk.load_state_dict({**wanted, **given})


def _block_and_tensor(key: str) -> tuple[str, str]:
    """Splits "stages.3.0.expand.0.weight" after the block's own name."""
    parts = key.split(".")
    return ".".join(parts[:3]), ".".join(parts[3:])


def read_state_dict(source: str | os.PathLike, *, sha256: str | None = None) -> StateDict:
    """Tensors by name from a file or URL, in whatever layout they are.

    Raises:
        WeightsError: as for `load_weights`.
    """
    return extract_state_dict(load_checkpoint_file(local_path(source, sha256)), str(source))


def load_checkpoint_file(path: str | os.PathLike) -> object:
    """Unpickle a checkpoint, tensors and plain containers only, onto the CPU. A damaged download is
    removed from the cache.

    Raises:
        WeightsError: missing, damaged, a web page, or holding objects that could run code.
    """
    path = Path(path)
    try:
        with path.open("rb") as f:
            start = f.read(256).lstrip()
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _refuse_bombs(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise
    except Exception as error:
        if "Unsupported global" in str(error):
            raise WeightsError(
                f"{path}: holds objects besides tensors, and loading those could run code: refused"
            ) from None
        page = start.startswith((b"<!", b"<html", b"<HTML", b"<?xml"))
        what = "is a web page, not weights" if page else f"is damaged or not a checkpoint ({type(error).__name__})"
        hint = (
            "; it was removed from the cache, so that the next call downloads it again"
            if delete_from_cache(path)
            else ""
        )
        raise WeightsError(f"{path}: {what}{hint}") from None


def _refuse_bombs(path: Path) -> None:
    """Refuse an archive that is larger inside than outside; torch stores all as it is, and compresses nothing.

    Raises:
        ValueError: it is one, or a damaged archive.
    """
    if not zipfile.is_zipfile(path):
        return  # older checkpoints are no archives
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > (
        path.stat().st_size
    ):
        raise ValueError("its archive is larger inside than outside")


def extract_state_dict(checkpoint: object, name: str) -> StateDict:
    """The tensors of a checkpoint: EMA weights where it has them, else the model's; without `module.` prefixes.

    Raises:
        WeightsError: there are none.
    """
    found = checkpoint
    for _ in range(3):  # checkpoints nest their state dict at most this deep
        if not isinstance(found, Mapping):
            break
        inner = next(
            (found[k] for k in ("model_ema", "ema", "state_dict", "model", "module") if _is_state(found, k)), None
        )
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise WeightsError(f"{name}: holds no state dict (tensors by name)")
    while all(key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): value for key, value in found.items()}
    return found


def _is_state(checkpoint: Mapping, key: str) -> bool:
    return isinstance(checkpoint.get(key), Mapping) and len(checkpoint[key]) > 0


def _layout(found: StateDict, name: str) -> str:
    if any(key.startswith("backbone.stages.xif") for key in found):
        return "mobile_vision"
    if "conv_stem.weight" in found:
        return "timm"
    if any(key.startswith(("backbone.stages.0.", "stages.0.")) for key in found):
        return "fbnetv3"
    keys = ", ".join(list(found)[:3])
    raise WeightsError(
        f"{name}: weights of no layout known here (ours, mobile-vision's or timm's FBNetV3); it begins with {keys}"
    )


def _convert(found: StateDict, defn: ArchDef, layout: str, name: str) -> dict[str, Tensor]:
    """The same tensors under our names. What has no place in `defn` keeps its name, and is refused later."""
    given = {key: value for key, value in found.items() if key != "classifier.weight"}
    if layout == "timm":
        _refuse_other_padding(defn, name)
        if "classifier.weight" in found:
            weight = found["classifier.weight"]
            given["classifier.weight"] = weight[:, :, None, None] if weight.ndim == 2 else weight
        # timm's stem has no bias; in front of a BatchNorm it is zero
        given.setdefault("conv_stem.bias", torch.zeros(found["conv_stem.weight"].shape[0]))
        names = _timm_names(defn, found)
    else:
        names = _mobile_vision_names(defn)
    return {names.get(key, key): value for key, value in given.items()}


def _refuse_other_padding(defn: ArchDef, name: str) -> None:
    if any(row.dw_padding not in (None, row.kernel // 2) for stage in defn.stages for row in stage.rows if row.kernel):
        raise WeightsError(
            f"{name}: timm's weights are trained with depthwise padding kernel // 2, which {defn.name} has not: "
            f"build the network with that padding (fbnetv3_b_same_padding, or `derive: {{same_padding: true}}`)"
        )


def _mobile_vision_names(defn: ArchDef) -> dict[str, str]:
    """Our key by the authors' key."""
    names = {"head.conv.weight": "head.weight", "head.conv.bias": "head.bias"}
    for block in defn.blocks():
        theirs, ours = f"backbone.stages.xif{block.stage}_{block.index}", f"backbone.stages.{block.name}"
        if block.kind == "conv":
            names |= _unit(f"{theirs}.conv", f"{theirs}.bn", ours, bias=True)
        elif block.kind == "mbconv":
            for part, unit in (("pw", "expand"), ("dw", "depthwise"), ("pwl", "project")):
                names |= _unit(f"{theirs}.{part}.conv", f"{theirs}.{part}.bn", f"{ours}.{unit}")
            names |= _conv(f"{theirs}.se.se.0.conv", f"{ours}.se.fc1") | _conv(f"{theirs}.se.se.1", f"{ours}.se.fc2")
        elif block.spec.pools:
            names |= _unit(f"{theirs}.pw.conv", f"{theirs}.pw.bn", f"{ours}.expand")
            names[f"{theirs}.pwl.conv.weight"] = f"{ours}.project.weight"
    return names


def _timm_names(defn: ArchDef, found: StateDict) -> dict[str, str]:
    """Our key by timm's key. timm keeps the stem apart and cuts its stages elsewhere, so that blocks match by order."""
    names = {"classifier.weight": "head.weight", "classifier.bias": "head.bias"}
    places = sorted({tuple(map(int, m.groups())) for m in map(_TIMM_BLOCK.match, found) if m})
    theirs = [f"blocks.{stage}.{index}" for stage, index in places]
    for block, their in zip(defn.blocks(), ["", *theirs], strict=False):
        ours = f"backbone.stages.{block.name}"
        if block.kind == "conv":
            names |= _unit("conv_stem", "bn1", ours, bias=True)
        elif block.kind == "mbconv":
            units: tuple[tuple[str, str, str], ...]
            if cast("MBConvSpec", block.spec).has_expand:
                units = (("conv_pw", "bn1", "expand"), ("conv_dw", "bn2", "depthwise"), ("conv_pwl", "bn3", "project"))
            else:
                units = (("conv_dw", "bn1", "depthwise"), ("conv_pw", "bn2", "project"))
            for convolution, norm, unit in units:
                names |= _unit(f"{their}.{convolution}", f"{their}.{norm}", f"{ours}.{unit}")
            names |= _conv(f"{their}.se.conv_reduce", f"{ours}.se.fc1")
            names |= _conv(f"{their}.se.conv_expand", f"{ours}.se.fc2")
        elif block.spec.pools:
            names |= _unit(f"{their}.conv", f"{their}.bn1", f"{ours}.expand")
            names["conv_head.weight"] = f"{ours}.project.weight"
    return names


def _unit(conv: str, norm: str, ours: str, bias: bool = False) -> dict[str, str]:
    """Names of a convolution and its BatchNorm, which are items 0 and 1 of our unit."""
    names = {f"{conv}.weight": f"{ours}.0.weight"} | {f"{norm}.{part}": f"{ours}.1.{part}" for part in _BATCHNORM}
    return names | ({f"{conv}.bias": f"{ours}.0.bias"} if bias else {})


def _conv(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}


def _fit_prefix(given: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Names as `model` has them: a trunk knows neither `backbone.` nor the head, nor blocks beyond its own."""
    classifier = any(key.startswith("backbone.") for key in given)
    if isinstance(model, Features):
        beyond = tuple(
            f"stages.{block.name}."
            for block in model.arch.blocks()
            if block.stage >= len(model.stages) or block.index >= len(cast("nn.Sequential", model.stages[block.stage]))
        )
        trunk = {key.removeprefix("backbone."): v for key, v in given.items() if not key.startswith("head.")}
        return {key: value for key, value in trunk.items() if not key.startswith(beyond)}
    return given if classifier else {f"backbone.{key}": value for key, value in given.items()}


def _drop_foreign_head(given: dict[str, Tensor], wanted: StateDict, name: str) -> bool:
    """Leave the head out where its class count differs from the network's. Returns whether it is loaded."""
    if "head.weight" not in wanted:
        given.pop("head.weight", None), given.pop("head.bias", None)
        return False
    theirs, ours = given.get("head.weight"), wanted["head.weight"]
    if theirs is None or theirs.ndim != ours.ndim or theirs.shape[1:] != ours.shape[1:] or theirs.shape == ours.shape:
        return True
    logger.warning(
        "%s has %d classes, the network %d: the trunk is loaded, the head stays as it is",
        name,
        theirs.shape[0],
        ours.shape[0],
    )
    given["head.weight"], given["head.bias"] = wanted["head.weight"], wanted["head.bias"]
    return False


def _check(given: StateDict, wanted: StateDict, name: str) -> None:
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in wanted]
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in given and given[key].shape != value.shape
    ]
    problems = [
        f"{what}: {_short(keys)}"
        for what, keys in (("missing", missing), ("unknown", unexpected), ("shape", shapes))
        if keys
    ]
    if problems:
        raise WeightsError(f"{name}: does not fit the network; {'; '.join(problems)}")


def _short(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
