"""Load weights into networks, from files, URLs and state dicts in any known naming."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from fbnetv3.arch import ArchDef
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.input_conv import adapt_to_network
from fbnetv3.modeling.network import FeatureExtractor, Trunk
from fbnetv3.modeling.safe_loading import StateDict, extract_state_dict, read_state_dict
from fbnetv3.modeling.weight_conversion import Naming, convert_state_dict
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

WeightsSource = str | os.PathLike | Mapping

_BACKBONE = "backbone."
_HEAD = ("head.weight", "head.bias")
_MAX_LISTED_KEYS = 5


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did."""

    naming: Naming
    head_loaded: bool


def load_weights(model: nn.Module, source: WeightsSource, *, sha256: str | None = None) -> LoadReport:
    """Load weights into a network; the source must have all weights that the network has.

    If the number of classes differs, all weights but the head's are loaded, with a warning. If the number of input
    channels differs, the first convolution is adapted, with a warning; see `fbnetv3.modeling.input_conv`.

    Args:
        model: a classifier or a `features_only` network from `create_model`.
        source: a file, a URL, a `zoo://` entry, or a state dict, with the names of this project, mobile-vision (the
            authors' classifiers; EMA weights are preferred) or timm.
        sha256: expected checksum of a download.

    Raises:
        WeightsError: the file is missing, corrupt, not weights, unsafe to load, or made for a different network (the
            message lists keys and shapes). On any error the network keeps its weights.
    """
    arch = cast("ArchDef", model.arch)
    name, naming, weights = _read(source, arch, sha256)
    # Match the names to the kind of network, and drop what it lacks
    if isinstance(model, FeatureExtractor):
        blocks = [f"stages.{block.name}" for block in arch.blocks()]
        modules = dict(model.named_modules())
        lacking = tuple(f"{block}." for block in blocks if block not in modules)
        weights = {key.removeprefix(_BACKBONE): value for key, value in weights.items()}
        weights = {key: value for key, value in weights.items() if not key.startswith(lacking)}
    elif not any(key.startswith(_BACKBONE) for key in weights):  # the source is a trunk
        weights = {f"{_BACKBONE}{key}": value for key, value in weights.items()}
    has_head = "head.weight" in model.state_dict()
    if not has_head:
        weights = {key: value for key, value in weights.items() if key not in _HEAD}
    weights = adapt_to_network(weights, model, name)
    head_loaded = load_checked_weights(model, weights, name, arch.name)
    return LoadReport(naming, has_head and head_loaded)


def load_trunk(
    trunk: Trunk, source: WeightsSource, *, classifier: ArchDef | None = None, skip: int = 0
) -> None:
    """Load a classifier's weights into some of its blocks, such as the trunk or the box head of a detector.

    Args:
        trunk: the blocks to load into.
        source: the classifier's weights; see `load_weights`.
        classifier: architecture of the weights; default: that of `trunk`.
        skip: number of the classifier's blocks before the first block of `trunk`.

    Raises:
        WeightsError: as for `load_weights`.
    """
    arch = trunk.arch if classifier is None else classifier
    name, _, classifier_weights = _read(source, arch)
    # Rename the classifier's blocks to the trunk's
    block_pairs = zip(arch.blocks()[skip:], trunk.arch.blocks(), strict=False)
    trunk_block_of = {
        f"stages.{block.name}": f"stages.{trunk_block.name}" for block, trunk_block in block_pairs
    }
    weights = {}
    for key, value in classifier_weights.items():
        # "stages", "3", "0", "expand.0.weight"
        *block_path, tensor = key.removeprefix(_BACKBONE).split(".", 3)
        block = ".".join(block_path)
        if block in trunk_block_of:
            weights[f"{trunk_block_of[block]}.{tensor}"] = value
    # A trunk may end before the last block of its architecture
    own_keys = trunk.state_dict().keys()
    weights = {key: value for key, value in weights.items() if key in own_keys}
    load_checked_weights(trunk, weights, name, arch.name)


def _read(
    source: WeightsSource, arch: ArchDef, sha256: str | None = None
) -> tuple[str, Naming, dict[str, Tensor]]:
    """Return the name of the source for messages, its naming, and its weights under this project's names."""
    if isinstance(source, Mapping):
        name = "the state dict"
        state_dict = extract_state_dict(source, name)
    else:
        name = os.fspath(source)
        state_dict = read_state_dict(source, sha256=sha256)
    naming, weights = convert_state_dict(state_dict, arch, name)
    return name, naming, weights


def load_checked_weights(model: nn.Module, weights: StateDict, source: str, network: str) -> bool:
    """Load weights into a network that has the same keys and shapes; return whether all of them were loaded.

    A head with a different number of classes is not loaded, and batch counts of BatchNorm may be missing. For any other
    difference, raise WeightsError. `source` and `network` are names for messages.
    """
    expected = model.state_dict()
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    own_shapes = {key: tuple(value.shape) for key, value in expected.items()}
    different = [key for key in shapes if key in own_shapes and shapes[key] != own_shapes[key]]
    # A last layer with a different number of classes has a weight and bias that differ only in the first dimension
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    head = (f"{layers[-1]}.weight", f"{layers[-1]}.bias") if getattr(model, "num_classes", 0) else ()
    keeps_head = bool(different) and all(
        key in head and shapes[key][1:] == own_shapes[key][1:] and () not in (shapes[key], own_shapes[key])
        for key in different
    )
    if keeps_head:
        classes = shapes[different[0]][0]
        own_classes = own_shapes[different[0]][0]
        logger.warning(
            "%s has %d classes, the network %d: the head is not loaded", source, classes, own_classes
        )
        weights = {**weights, **{key: expected[key] for key in different}}
        different = []
    # Load nothing unless everything fits
    mismatches = {
        "missing": [
            key for key in expected if key not in weights and not key.endswith("num_batches_tracked")
        ],
        "unknown": [key for key in weights if key not in expected],
        "shape": [f"{key} {shapes[key]} instead of {own_shapes[key]}" for key in different],
    }
    problems = [
        f"{problem}: {first_few(keys, _MAX_LISTED_KEYS)}" for problem, keys in mismatches.items() if keys
    ]
    if problems:
        advice = "check the architecture and the number of input channels and classes"
        raise WeightsError(f"{source} does not fit {network}: {'; '.join(problems)}; {advice}")
    model.load_state_dict({**expected, **weights})
    return not keeps_head
