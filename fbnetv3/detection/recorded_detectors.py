"""Use what a checkpoint records about its detector: build a config from it, or apply it to another config."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from fbnetv3.arch import dump_arch, get_arch, list_archs
from fbnetv3.arch.arch_files import arch_from_dict
from fbnetv3.detection.anchors.anchor_fitting import ANCHOR_KEYS, require_resolved_anchors
from fbnetv3.detection.data.detection_datasets import Classes, num_classes_setting
from fbnetv3.detection.data.keypoint_names import config_skeleton
from fbnetv3.detection.detection_config import build_detection_config
from fbnetv3.detection.models.fbnetv3_backbone import arch_name, config_arch
from fbnetv3.errors import UsageError, UserError, WeightsError
from fbnetv3.training.run_state.detector_record import DetectorRecord, read_detector_record
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.downloads import ZOO_PREFIX, is_url
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.imports import user_modules
from fbnetv3.utils.nested_keys import flatten
from fbnetv3.utils.text import describe_error, first_few, shorten

logger = logging.getLogger(__name__)

_ARCH = "MODEL.FBNETV3.ARCH"
# What a network's input must be, and where a record has it
_INPUT_KEYS = {"INPUT.FORMAT": "format", "MODEL.PIXEL_MEAN": "mean", "MODEL.PIXEL_STD": "std"}
_ANCHOR_NAMES = (*ANCHOR_KEYS, "OFFSET", "FIT")
# Last parts of keys of MODEL that say what weights of the same shape mean
_MEANING_NAMES = (
    *("USE_SIGMOID_CE", "BBOX_REG_WEIGHTS", "CLS_AGNOSTIC_BBOX_REG"),
    *("IN_FEATURES", "OUT_FEATURES", "FUSE_TYPE"),
)
_POOLER_PREFIX = "POOLER_"


def describe_detector(cfg: CfgNode, classes: Classes, data: Mapping[str, Any]) -> DetectorRecord:
    """Return the record of a config's detector, for its checkpoints.

    Args:
        cfg: detectron2's config.
        classes: category ids and class names, by class index.
        data: fingerprints of the datasets, by name.
    """
    arch = config_arch(cfg)
    return DetectorRecord(
        cfg.dump(),
        arch_name(cfg),
        arch if isinstance(arch, str) else dump_arch(arch),
        tuple(classes.values()),
        tuple(classes),
        {
            "format": cfg.INPUT.FORMAT,
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
        },
        dict(data),
        config_skeleton(cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)),
    )


def config_from_checkpoint(path: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """Return the config that a detector's checkpoint records, with KEY VALUE pairs on top; `MODEL.WEIGHTS` is the file.

    `path` is a file, a URL, or the folder of a run. Modules that the config imports are named, not imported: a file of
    weights must not run code. `OUTPUT_DIR` is the folder of the run that the file is in, or else one next to the file.

    Raises:
        UsageError: the file records no config, or a KEY VALUE pair is wrong.
        WeightsError: the file is missing or corrupt.
    """
    weights = str(path)
    if expand_path(path).is_dir():
        trained = RunFolder(os.fspath(path)).trained_weights()
        if trained is None:
            raise UsageError(f"{path}: has no weights of a training run")
        weights = str(trained)
    record = read_detector_record(weights)
    if record is None:
        raise UsageError(f"{weights}: does not record a detector's config: pass --config FILE")
    return config_from_detector_record(record, weights, overrides)


def config_from_detector_record(
    record: DetectorRecord, weights: str, overrides: Sequence[str] = ()
) -> CfgNode:
    """Build the config that a record holds for the weights of a path or URL; see `config_from_checkpoint`."""
    try:
        values = yaml.safe_load(record.config)
        modules = [str(name) for name in values.pop("IMPORTS", None) or [] if name not in user_modules()]
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise WeightsError(
            f"{weights}: the config that it records cannot be read ({describe_error(error)})"
        ) from None
    if modules:
        logger.info("%s was trained with modules that --import can import: %s", weights, first_few(modules))
    flat = {
        **flatten(values),
        _ARCH: _arch_value(record, weights),
        "MODEL.WEIGHTS": weights,
        "OUTPUT_DIR": str(_output_folder(weights)),
    }
    return build_detection_config(flat, overrides, f"{weights}: ", ignore_unknown=True)


def use_recorded_detector(
    cfg: CfgNode, record: DetectorRecord | None, source: str, keep: Collection[str] = ()
) -> CfgNode:
    """Return the config with which to use the weights of `source`: its architecture, anchors, poolers and so on.

    Keys in `keep`, which are given on the command line, stay. Each value in which the config, or a key that stays,
    differs from the training is logged.
    """
    if record is None:
        require_resolved_anchors(cfg, source)
        return cfg
    values: dict[str, Any] = {_ARCH: _arch_value(record, source), **_recorded_model_keys(record)}
    values |= {
        key: record.preprocessing[name] for key, name in _INPUT_KEYS.items() if name in record.preprocessing
    }
    if record.classes:
        values[num_classes_setting(cfg)[0]] = len(record.classes)
    result = cfg.clone()
    result.defrost()
    flat = flatten(cfg)
    for key, value in values.items():
        if key not in flat:  # of another version
            continue
        configured = flat[key]
        value = _like(configured, value)
        if configured == value or (key == _ARCH and _is_same_arch(cfg, record)):
            continue
        shown = record.arch if key == _ARCH else value
        if key in keep:
            logger.info("%s %s, as given: %s was trained with %s", key, configured, source, shown)
            continue
        logger.info(
            "%s %s, as %s was trained: the config has %s", key, shown, source, shorten(configured, 80)
        )
        section, _, name = key.rpartition(".")
        node: Any = result
        for part in section.split("."):
            node = node[part]
        node[name] = value
    result.freeze()
    return result


def _recorded_model_keys(record: DetectorRecord) -> dict[str, Any]:
    """Return a detector's anchors, poolers, feature maps, and coding of boxes and scores, by key."""
    try:
        values = flatten(yaml.safe_load(record.config))
    except (yaml.YAMLError, AttributeError, TypeError):
        return {}
    recorded = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        is_anchor = section == "MODEL.ANCHOR_GENERATOR" and name in _ANCHOR_NAMES
        is_meaning = name in _MEANING_NAMES or name.startswith(_POOLER_PREFIX)
        if is_anchor or (section.startswith("MODEL.") and is_meaning):
            recorded[key] = value
    return recorded


def _like(configured: Any, value: Any) -> Any:
    """Return a value from YAML, which has lists only, with tuples where the config has them."""
    if not isinstance(value, list) or not isinstance(configured, (list, tuple)):
        return value
    models = [*configured, *value[len(configured) :]]
    return type(configured)(_like(model, item) for model, item in zip(models, value, strict=False))


def recorded_classes(record: DetectorRecord | None) -> Classes | None:
    """Return the category ids and class names of a record, by class index; None if there are none."""
    if record is None or not record.classes:
        return None
    return dict(zip(record.category_ids, record.classes, strict=True))


def _arch_value(record: DetectorRecord, source: str) -> str:
    """Return the value of MODEL.FBNETV3.ARCH: the name, or the definition if the name does not stand for it."""
    if record.arch == record.definition:  # a name that only torchvision defines
        return record.arch
    try:
        arch = arch_from_dict(yaml.safe_load(record.definition))
    except (UserError, yaml.YAMLError, TypeError) as error:
        raise WeightsError(
            f"{source}: the architecture that it records cannot be read ({describe_error(error)})"
        ) from None
    is_registered = arch.name in list_archs() and get_arch(arch.name) == arch
    return arch.name if is_registered else record.definition


def _is_same_arch(cfg: CfgNode, record: DetectorRecord) -> bool:
    try:
        arch = config_arch(cfg)
    except UserError:  # the file may have moved
        return False
    return record.definition == (arch if isinstance(arch, str) else dump_arch(arch))


def _output_folder(weights: str) -> Path:
    """Return the folder of the run that a file belongs to; for a single file, a folder of its own next to it.

    The recorded folder would be relative to the current one, where it may belong to a different run.
    """
    if is_url(weights) or weights.startswith(ZOO_PREFIX):
        return Path("output") / Path(weights).stem
    path = expand_path(weights)
    run_folder = next((folder for folder in path.parents[:2] if RunFolder(folder).config.is_file()), None)
    return run_folder or path.with_suffix("")
