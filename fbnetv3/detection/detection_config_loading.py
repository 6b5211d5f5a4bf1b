"""detectron2 configs for the tools: a YAML file, KEY VALUE pairs on top, and errors that say what to do."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY

from fbnetv3.config.loading import flat_keys, read_config_file
from fbnetv3.detection.data.detection_datasets import register_own
from fbnetv3.detection.detection_config import add_fbnetv3_config
from fbnetv3.errors import UsageError, suggest

logger = logging.getLogger(__name__)

OPTIMIZERS = ("SGD", "AdamW")
SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
}
# yacs's words for a value of another type than the default's.
_MISMATCH = re.compile(
    r"Type mismatch \(<class '(?P<type>\w+)'> vs\. <class '\w+'>\) with values \(.* vs\. (?P<value>.*)\) "
    r"for config key: (?P<key>\S+)"
)
_TYPES = {"bool": "True or False", "int": "a whole number", "float": "a number", "str": "text", "tuple": "a list"}
_AT_LEAST_ONE = ("SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINTS")


def load_config(file: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """The config of a YAML file and its `_BASE_` files, with KEY VALUE pairs on top; frozen, on a device that is there.

    A file that `MODEL.FBNETV3.ARCH` names is looked for beside the config file first. A data set of `DATASETS.OWN` is
    registered. Files are read as plain YAML: tags that would run code are refused.

    Raises:
        UsageError: no such file, not YAML, an unknown key (the text suggests close ones), a wrong type or value.
    """
    cfg = get_cfg()
    add_fbnetv3_config(cfg)
    values = _without_base(read_config_file(file))
    known = flat_keys(cfg)
    for key in _flat(values):
        if not any(other == key or other.startswith(f"{key}.") for other in known) and not _below_leaf(key, known):
            raise UsageError(f"{file}: unknown key {key}: {suggest(key, known)}")
    _told(lambda: cfg.merge_from_other_cfg(CfgNode(values)), f"{file}: ")
    if len(overrides) % 2:
        raise UsageError(f"{overrides[-1]}: has no value; overrides come as KEY VALUE pairs")
    for key in overrides[::2]:
        if key not in known:
            raise UsageError(f"unknown key {key}: {suggest(key, known)}")
    _told(lambda: cfg.merge_from_list(list(overrides)), "")
    register_own(cfg)
    _choose_device(cfg)
    _check(cfg)
    cfg.freeze()
    return cfg


def _without_base(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "_BASE_"}


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        keys += _flat(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return keys


def _below_leaf(key: str, known: Mapping[str, Any]) -> bool:
    """Whether a key lies below one that has no keys of its own: then it is the value that is wrong, not the name."""
    parts = key.split(".")
    return any(".".join(parts[:n]) in known for n in range(1, len(parts)))


def _told(merge: Callable[[], None], where: str) -> None:
    """What yacs has against values, as one line."""
    try:
        merge()
    except (ValueError, KeyError, AssertionError, AttributeError, TypeError, SyntaxError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        if found := _MISMATCH.fullmatch(reason):
            reason = f"{found['key']} {found['value']} is not {_TYPES.get(found['type'], 'a ' + found['type'])}"
        raise UsageError(f"{where}{reason[:300]}") from None


def _choose_device(cfg: CfgNode) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.info("no GPU here: MODEL.DEVICE is cpu")
        cfg.MODEL.DEVICE = "cpu"
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise UsageError(f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} is no device: cpu, cuda, cuda:1") from None
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise UsageError("SOLVER.AMP.ENABLED needs a GPU: set it to False")


def _check(cfg: CfgNode) -> None:
    values = flat_keys(cfg)
    for key in _AT_LEAST_ONE:
        if values[key] < 1:
            raise UsageError(f"{key} {values[key]!r} is not at least 1")
    for key, known in (("SOLVER.OPTIMIZER", OPTIMIZERS), ("SOLVER.LR_SCHEDULER_NAME", SCHEDULES)):
        if values[key] not in known:
            raise UsageError(f"{key} {values[key]!r} is none: {suggest(values[key], known)}")
    for key, registry in _REGISTRIES.items():
        names = [name for name, _ in registry]
        if values[key] and values[key] not in names:
            raise UsageError(f"{key} {values[key]!r} is not registered: {suggest(values[key], names)}")
    if not 0 <= cfg.MODEL_EMA.DECAY < 1:
        raise UsageError(f"MODEL_EMA.DECAY {cfg.MODEL_EMA.DECAY} is not in [0, 1)")
    if not cfg.OUTPUT_DIR:
        raise UsageError("OUTPUT_DIR is empty: name a folder")
