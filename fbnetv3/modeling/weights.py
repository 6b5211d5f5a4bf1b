"""Load weights into networks, from files, URLs and state dicts in any known naming."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from torch import Tensor, nn

from fbnetv3.arch import ArchDef
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.checkpoint_contents import (
    FindPrefixes,
    StateDict,
    WeightsCandidate,
    check_finite,
    find_candidates,
    only_candidate,
)
from fbnetv3.modeling.network import FeatureExtractor, Trunk
from fbnetv3.modeling.safe_loading import load_checkpoint_file
from fbnetv3.modeling.timm_conventions.input_conv import adapt_first_conv
from fbnetv3.modeling.weight_conversion import NETWORK_PARTS, Naming, convert_state_dict, network_prefixes
from fbnetv3.utils.downloads import local_path
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

WeightsSource = str | os.PathLike | Mapping

_BACKBONE = "backbone."
_HEAD = ("head.weight", "head.bias")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_MAX_LISTED_KEYS = 5


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did."""

    naming: Naming
    head_loaded: bool


def load_weights(
    model: nn.Module, source: WeightsSource, *, sha256: str | None = None, adapt_input: bool = False
) -> LoadReport:
    """Load weights into a network; the source must have all weights that the network has.

    If the number of classes differs, all weights but the head's are loaded, with a warning.

    Args:
        model: a classifier or a `features_only` network from `create_model`.
        source: a file, a URL, a `zoo://` entry, or a state dict, with the names of this project, mobile-vision (the
            authors' classifiers) or timm, in the containers and under the prefixes of common training scripts.
            Averaged (EMA) weights are preferred. Tensors that belong to no part of the network are ignored, with a
            warning.
        sha256: expected checksum of a download.
        adapt_input: if the number of input channels differs, adapt the first convolution's weight as timm does.

    Raises:
        WeightsError: the file is missing, corrupt, not weights, unsafe to load, or made for a different network (the
            message lists keys and shapes), contains NaN or infinity, or has several weights that fit. On any error the
            network keeps its weights.
    """
    arch = cast("ArchDef", model.arch)
    candidates = read_candidates(source, network_prefixes, sha256)
    name = candidates[0].source
    chosen = load_best(model, candidates, arch.name, partial(_adapt, model, arch, name, adapt_input))
    naming, _ = convert_state_dict(chosen.candidate.weights, arch, name)
    return LoadReport(naming, "head.weight" in model.state_dict() and not chosen.has_other_classes)


def _adapt(
    model: nn.Module, arch: ArchDef, name: str, adapt_input: bool, state_dict: StateDict
) -> dict[str, Tensor]:
    """Convert a classifier's weights to the names of a network of the same architecture, and drop what it lacks."""
    _, weights = convert_state_dict(state_dict, arch, name)
    if isinstance(model, FeatureExtractor):
        blocks = [f"stages.{block.name}" for block in arch.blocks()]
        modules = dict(model.named_modules())
        lacking = tuple(f"{block}." for block in blocks if block not in modules)
        weights = {key.removeprefix(_BACKBONE): value for key, value in weights.items()}
        weights = {key: value for key, value in weights.items() if not key.startswith(lacking)}
    elif not any(key.startswith(_BACKBONE) for key in weights):  # the source is a trunk
        weights = {f"{_BACKBONE}{key}": value for key, value in weights.items()}
    if "head.weight" not in model.state_dict():
        weights = {key: value for key, value in weights.items() if key not in _HEAD}
    return adapt_first_conv(model, weights) if adapt_input else weights


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
    candidates = read_candidates(source, network_prefixes)
    name = candidates[0].source
    # The classifier's blocks -> the trunk's
    block_pairs = zip(arch.blocks()[skip:], trunk.arch.blocks(), strict=False)
    trunk_block_of = {
        f"stages.{block.name}": f"stages.{trunk_block.name}" for block, trunk_block in block_pairs
    }
    own_keys = trunk.state_dict().keys()

    def rename_blocks(state_dict: StateDict) -> dict[str, Tensor]:
        weights = {}
        for key, value in convert_state_dict(state_dict, arch, name)[1].items():
            # "stages", "3", "0", "expand.0.weight"
            *block_path, tensor = key.removeprefix(_BACKBONE).split(".", 3)
            block = ".".join(block_path)
            if block in trunk_block_of:
                weights[f"{trunk_block_of[block]}.{tensor}"] = value
        # A trunk may end before the last block of its architecture
        return {key: value for key, value in weights.items() if key in own_keys}

    load_best(trunk, candidates, arch.name, rename_blocks)


def read_candidates(
    source: WeightsSource, find_prefixes: FindPrefixes, sha256: str | None = None
) -> list[WeightsCandidate]:
    """Return the state dicts in a source of weights that may be the network's; see `find_candidates`."""
    name = "the state dict" if isinstance(source, Mapping) else os.fspath(source)
    contents = source if isinstance(source, Mapping) else load_checkpoint_file(local_path(source, sha256))
    return find_candidates(contents, name, find_prefixes)


def head_tensors(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a classifier's weight and bias in its last layer; none without a head."""
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return (f"{layers[-1]}.weight", f"{layers[-1]}.bias") if getattr(model, "num_classes", 0) else ()


@dataclass(frozen=True)
class _Fit:
    """How well a candidate fits a network."""

    candidate: WeightsCandidate
    weights: StateDict  # by the network's names
    foreign: list[str]  # names of tensors that belong to no part of a network
    other_head: list[str]  # names of the head's tensors, if they have a different number of classes
    problems: str  # why it does not fit

    @property
    def has_other_classes(self) -> bool:
        """Whether the head has a different number of classes."""
        return bool(self.other_head)


def load_best(
    model: nn.Module,
    candidates: Sequence[WeightsCandidate],
    network: str,
    adapt: Callable[[StateDict], StateDict] = lambda weights: weights,
) -> _Fit:
    """Load the candidate that fits a network, averaged weights before raw ones, and return which it was.

    A head with a different number of classes is not loaded, with a warning, and batch counts of BatchNorm may be
    missing.

    Args:
        model: the network, which is unchanged on any error.
        candidates: from `read_candidates`.
        network: its name in messages.
        adapt: converts a state dict to the network's names; it raises a WeightsError for one that cannot fit.

    Raises:
        WeightsError: no candidate fits, several do, or the weights contain NaN or infinity.
    """
    fits = [_assess(model, candidate, adapt) for candidate in candidates]
    preferred = [fit for fit in fits if fit.candidate.rank == candidates[0].rank]
    complete = [_complete_statistics(model, fit, fits) for fit in preferred]
    fitting = [fit for fit in complete if not fit.problems]
    if not fitting:
        raise WeightsError(_describe_misfit(preferred, network))
    # A network with the same classes fits better
    fitting = [fit for fit in fitting if not fit.other_head] or fitting
    chosen_candidate = only_candidate([fit.candidate for fit in fitting], network)
    chosen = next(fit for fit in fitting if fit.candidate is chosen_candidate)
    weights = {key: value for key, value in chosen.weights.items() if key not in chosen.other_head}
    check_finite(weights, chosen_candidate.source)
    chosen_candidate.report(chosen.foreign)
    expected = model.state_dict()
    if chosen.other_head:
        key = chosen.other_head[0]
        classes, own_classes = len(chosen.weights[key]), len(expected[key])
        logger.warning(
            "%s has %d classes, the network %d: the head is not loaded",
            chosen_candidate.source,
            classes,
            own_classes,
        )
    model.load_state_dict({**expected, **weights})
    return chosen


def _assess(model: nn.Module, candidate: WeightsCandidate, adapt: Callable[[StateDict], StateDict]) -> _Fit:
    try:
        adapted = adapt(candidate.weights)
    except WeightsError as error:
        return _Fit(candidate, {}, [], [], str(error))
    return _compare(model, candidate, adapted)


def _compare(model: nn.Module, candidate: WeightsCandidate, adapted: StateDict) -> _Fit:
    """Compare keys and shapes with those of the network."""
    expected = model.state_dict()
    parts = {key.partition(".")[0] for key in expected} | NETWORK_PARTS
    foreign = [key for key in adapted if key.partition(".")[0] not in parts]
    weights = {key: value for key, value in adapted.items() if key.partition(".")[0] in parts}
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    own_shapes = {key: tuple(value.shape) for key, value in expected.items()}
    different = [key for key in shapes if key in own_shapes and shapes[key] != own_shapes[key]]
    # A last layer with a different number of classes has a weight and bias that differ only in the first dimension
    head = head_tensors(model)
    has_other_head = bool(different) and all(
        key in head and shapes[key][1:] == own_shapes[key][1:] and () not in (shapes[key], own_shapes[key])
        for key in different
    )
    mismatches = {
        "missing": [
            key for key in expected if key not in weights and not key.endswith("num_batches_tracked")
        ],
        "unknown": [key for key in weights if key not in expected],
        "shape": [
            f"{key} {shapes[key]} instead of {own_shapes[key]}" for key in different if not has_other_head
        ],
    }
    problems = [
        f"{problem}: {first_few(keys, _MAX_LISTED_KEYS)}" for problem, keys in mismatches.items() if keys
    ]
    return _Fit(candidate, weights, foreign, different if has_other_head else [], "; ".join(problems))


def _complete_statistics(model: nn.Module, fit: _Fit, fits: Sequence[_Fit]) -> _Fit:
    """Complete an average of the parameters alone with the BatchNorm statistics of raw weights that fit."""
    raw = next(
        (other for other in fits if other.candidate.rank > fit.candidate.rank and not other.problems), None
    )
    if not fit.problems or not fit.weights or raw is None:
        return fit
    statistics = {key: value for key, value in raw.weights.items() if key.endswith(_STATISTICS)}
    return _compare(model, fit.candidate, {**statistics, **fit.weights})


def _describe_misfit(fits: Sequence[_Fit], network: str) -> str:
    """Return why none of several candidates fits a network, in the words of the first."""
    first = fits[0]
    if not first.weights:  # the names could not be converted
        return first.problems
    where = f"{first.candidate.place}: " if len(fits) > 1 or first.candidate.averaging else ""
    advice = "check the architecture and the number of input channels and classes"
    return f"{first.candidate.source} does not fit {network}: {where}{first.problems}; {advice}"
