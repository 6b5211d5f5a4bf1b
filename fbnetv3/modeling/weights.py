"""Load weights into networks, from files, URLs and state dicts in any known layout."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from fbnetv3.arch import ArchDef
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.checkpoint_files import StateDict, extract_state_dict, read_state_dict
from fbnetv3.modeling.network import Features, Trunk
from fbnetv3.modeling.weight_conversion import Layout, convert_state_dict, detect_layout
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

WeightsSource = str | os.PathLike | Mapping

_BACKBONE = "backbone."
_SHOWN = 5


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did."""

    layout: Layout
    """Layout of the weights."""
    head_loaded: bool
    """Whether the classifier's head was loaded too."""


def load_weights(model: nn.Module, source: WeightsSource, *, sha256: str | None = None) -> LoadReport:
    """Load weights into a network; the source must have all weights of the network.

    If the number of classes differs, all weights but the head's are loaded, with a warning.

    Args:
        model: a classifier or a `features_only` network from `create_model`.
        source: a file, a URL, a `zoo://` entry, or a state dict, in the layout of this project, mobile-vision (the
            authors' classifiers; EMA weights are preferred) or timm.
        sha256: expected checksum of a download.

    Raises:
        WeightsError: the file is missing, corrupt, not weights, unsafe to load, or made for a different network; in
            that case the message lists keys and shapes. The network keeps its weights.
    """
    # Read the weights and rename them to this project's layout
    name = _source_name(source)
    state_dict = _read(source, sha256)
    layout = detect_layout(state_dict, name)
    arch = cast("ArchDef", model.arch)
    weights = convert_state_dict(state_dict, arch, layout, name)
    # Match the names to the kind of network
    if isinstance(model, Features):
        weights = _select_features(weights, model)
    elif not any(key.startswith(_BACKBONE) for key in weights):  # the source is a trunk
        weights = {f"{_BACKBONE}{key}": value for key, value in weights.items()}
    # Nothing is loaded unless all of it fits
    expected = model.state_dict()
    head_loaded = _keep_own_head_if_classes_differ(weights, expected, name)
    _check_fit(weights, expected, name, arch)
    model.load_state_dict({**expected, **weights})
    return LoadReport(layout, head_loaded)


def load_trunk(trunk: Trunk, source: WeightsSource, *, classifier: ArchDef | None = None, skip: int = 0) -> None:
    """Load a classifier's weights into some of its blocks, such as the trunk or the box head of a detector.

    Args:
        trunk: consecutive blocks of the classifier.
        source: the classifier's weights; see `load_weights`.
        classifier: the classifier's architecture; default: that of `trunk`.
        skip: number of blocks of the classifier before those of `trunk`.

    Raises:
        WeightsError: see `load_weights`. The trunk keeps its weights.
    """
    name = _source_name(source)
    state_dict = _read(source)
    arch = trunk.arch if classifier is None else classifier
    converted = convert_state_dict(state_dict, arch, detect_layout(state_dict, name), name)

    # Rename the classifier's blocks to the trunk's
    block_pairs = zip(arch.blocks()[skip:], trunk.arch.blocks(), strict=False)
    trunk_block_of = {f"stages.{block.name}": f"stages.{trunk_block.name}" for block, trunk_block in block_pairs}
    expected = trunk.state_dict()
    weights = {}
    for key, value in converted.items():
        block, tensor = _split_block_name(key.removeprefix(_BACKBONE))
        trunk_key = f"{trunk_block_of.get(block)}.{tensor}"
        if trunk_key in expected:
            weights[trunk_key] = value
    _check_fit(weights, expected, name, arch)
    trunk.load_state_dict({**expected, **weights})


def _source_name(source: WeightsSource) -> str:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else "the state dict"


def _read(source: WeightsSource, sha256: str | None = None) -> StateDict:
    if isinstance(source, (str, os.PathLike)):
        return read_state_dict(source, sha256=sha256)
    return extract_state_dict(source, _source_name(source))


def _split_block_name(key: str) -> tuple[str, str]:
    """Split "stages.3.0.expand.0.weight" into "stages.3.0" and "expand.0.weight"."""
    parts = key.split(".")
    return ".".join(parts[:3]), ".".join(parts[3:])


def _select_features(weights: dict[str, Tensor], model: Features) -> dict[str, Tensor]:
    """Select a classifier's weights of the blocks that `model` has, under its names."""
    dropped = ["head."]
    for block in model.arch.blocks():
        has_stage = block.stage < len(model.stages)
        if not has_stage or block.index >= len(cast("nn.Sequential", model.stages[block.stage])):
            dropped.append(f"stages.{block.name}.")
    renamed = {key.removeprefix(_BACKBONE): value for key, value in weights.items()}
    return {key: value for key, value in renamed.items() if not key.startswith(tuple(dropped))}


def _keep_own_head_if_classes_differ(weights: dict[str, Tensor], expected: StateDict, name: str) -> bool:
    """Replace the head in `weights` with the network's own if their numbers of classes differ.

    Returns:
        Whether the head in `weights` will be loaded.
    """
    if "head.weight" not in expected:  # a network without a head
        weights.pop("head.weight", None)
        weights.pop("head.bias", None)
        return False
    head = weights.get("head.weight")
    own_head = expected["head.weight"]
    if head is None or head.shape == own_head.shape:
        return True
    if head.ndim != own_head.ndim or head.shape[1:] != own_head.shape[1:]:
        return True  # made for a different network, which `_check_fit` reports
    logger.warning("%s has %d classes, the network %d: the head is not loaded", name, len(head), len(own_head))
    weights["head.weight"] = own_head
    weights["head.bias"] = expected["head.bias"]
    return False


def _check_fit(weights: StateDict, expected: StateDict, name: str, arch: ArchDef) -> None:
    # Files without the batch counts of BatchNorm are complete enough
    required = [key for key in expected if not key.endswith("num_batches_tracked")]
    missing = [key for key in required if key not in weights]
    unknown = [key for key in weights if key not in expected]
    shapes = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    problems = [
        f"{problem}: {first_few(keys, _SHOWN)}"
        for problem, keys in (("missing", missing), ("unknown", unknown), ("shape", shapes))
        if keys
    ]
    if problems:
        advice = "check the architecture and the number of classes"
        raise WeightsError(f"{name} does not fit {arch.name}: {'; '.join(problems)}; {advice}")
