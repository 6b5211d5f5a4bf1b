"""Apply what a checkpoint records about its network to a config: in evaluation, and as the start of a training run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from fvcore.common.config import CfgNode

from fbnetv3.config.defaults import KEYS
from fbnetv3.config.loading import RUN_CONFIG, build_config, load_config
from fbnetv3.errors import UnknownNameError, UsageError, UserError
from fbnetv3.training.builders import resolve_arch
from fbnetv3.training.run_state.network_record import (
    AnyArch,
    NetworkRecord,
    arch_identity,
    read_network_record,
)
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.imports import user_modules
from fbnetv3.utils.nested_keys import flatten, parse_pairs
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

_INPUT_KEYS = ("INPUT.MEAN", "INPUT.STD", "INPUT.INTERPOLATION")


def load_recorded_config(overrides: Sequence[str]) -> CfgNode:
    """Load the config of a run from its results, with overrides, KEY VALUE pairs, on top.

    The overrides name the run: MODEL.WEIGHTS, a checkpoint that records its config, or OUTPUT_DIR, a run's folder.

    Raises:
        UsageError: they name neither, or the weights record no config.
    """
    pairs = parse_pairs(overrides)
    weights = pairs.get("MODEL.WEIGHTS")
    run_config = expand_path(pairs.get("OUTPUT_DIR", "")) / RUN_CONFIG
    if not weights and "OUTPUT_DIR" in pairs and run_config.is_file():
        return load_config(run_config, overrides)
    if not weights:
        raise UsageError(
            "no config: pass --config FILE, MODEL.WEIGHTS with a checkpoint, or OUTPUT_DIR with a run"
        )
    record = read_network_record(weights)
    if record is None or not record.config:
        raise UsageError(f"{weights}: does not record a config: pass --config FILE")
    return config_from_record(record, weights, overrides)


def config_from_record(record: NetworkRecord, source: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Build the config that a checkpoint records, with overrides on top.

    Modules that it names are not imported: a file of weights must not run code.
    """
    values = {key: value for key, value in record.config.items() if key in KEYS and key != "IMPORTS"}
    modules = [name for name in record.config.get("IMPORTS", []) if name not in user_modules()]
    if modules:
        logger.info("%s was trained with modules that --import can import: %s", source, first_few(modules))
    return build_config({**values, "MODEL.ARCH": record.arch.name}, overrides, f"{source}: ")


def use_recorded_network(
    cfg: CfgNode, record: NetworkRecord | None, source: str, keep: Collection[str] = ()
) -> tuple[CfgNode, AnyArch]:
    """Return config and architecture with which to evaluate the weights of `source`: those of their training.

    Keys in `keep`, which are given on the command line, stay. Each value in which the config, or a key that stays,
    differs from the training is logged.

    Raises:
        UsageError: weights without a record need the keys that the config leaves empty.
    """
    if record is None:
        return _without_record(cfg, source), resolve_arch(cfg, cfg.MODEL.ARCH)
    arch = record.arch
    if "MODEL.ARCH" in keep:
        arch = resolve_arch(cfg, cfg.MODEL.ARCH)
    _log_arch(cfg, record, arch, source)
    values = _recorded_values(record)
    if "INPUT.RESOLUTION" in keep:
        # Another resolution has the same ratio of short side to crop
        ratio = record.preprocessing.resize / record.preprocessing.resolution
        values["INPUT.RESIZE"] = round(cfg.INPUT.RESOLUTION * ratio)
    return _with_values(cfg, values, source, keep), arch


def start_from_weights(cfg: CfgNode) -> tuple[CfgNode, AnyArch, NetworkRecord | None]:
    """Return config and architecture of a training run that starts from MODEL.WEIGHTS, and what these record.

    Raises:
        UsageError: a key is empty, and the weights do not record it.
        UnknownNameError: there is no architecture of the name MODEL.ARCH.
        WeightsError: the weights are missing or corrupt.
    """
    weights = cfg.MODEL.WEIGHTS
    record = read_network_record(weights) if weights else None
    filled = _fill_from_record(cfg, record, weights)
    return filled, _choose_arch(cfg, record), record


def _fill_from_record(cfg: CfgNode, record: NetworkRecord | None, source: str) -> CfgNode:
    """Return the config of a training run that starts from the weights of `source` ("" for random ones).

    Keys that the config leaves empty, MODEL.ARCH, MODEL.IN_CHANS and those of normalization, get the values of the
    record. Other values stay; those of normalization that differ from the record are logged.

    Raises:
        UsageError: a key is empty, and there is no record.
    """
    if record is None:
        return _without_record(cfg, source)
    values = _recorded_values(record)
    filled = cfg.clone()
    filled.defrost()
    if not cfg.MODEL.ARCH:
        filled.MODEL.ARCH = record.arch.name
    for key in ("MODEL.IN_CHANS", *_INPUT_KEYS):
        if not _get(cfg, key):
            _check_channels(filled, key, values[key], source)
            _set(filled, key, values[key])
        elif key in _INPUT_KEYS and _get(cfg, key) != values[key]:
            logger.info("%s %s: %s was trained with %s", key, _get(cfg, key), source, values[key])
    for key in ("INPUT.FLIP", "INPUT.CROP"):
        if record.config.get(key, _get(cfg, key)) != _get(cfg, key):
            logger.info("%s %s: %s was trained with %s", key, _get(cfg, key), source, record.config[key])
    filled.freeze()
    return filled


def _check_channels(cfg: CfgNode, key: str, value: Any, source: str) -> None:
    """Require that a recorded mean or standard deviation has a value for each channel."""
    channels = cfg.MODEL.IN_CHANS
    if isinstance(value, list) and len(value) != channels:
        raise UsageError(
            f"{key} is empty, and {source} has {len(value)} values, but MODEL.IN_CHANS is {channels}: set {key}"
        )


def _choose_arch(cfg: CfgNode, record: NetworkRecord | None) -> AnyArch:
    """Return the architecture to train: the record's if MODEL.ARCH is empty, or a name that only the record defines."""
    name = cfg.MODEL.ARCH
    if record and not name:
        return record.arch
    try:
        return resolve_arch(cfg, name)
    except UnknownNameError:
        if record and name == record.arch.name:
            return record.arch
        raise


def _without_record(cfg: CfgNode, source: str) -> CfgNode:
    empty = next(
        (key for key in ("MODEL.ARCH", "MODEL.IN_CHANS", *_INPUT_KEYS) if not _get(cfg, key)), None
    )
    if empty:
        problem = f"{source} does not record it" if source else "MODEL.WEIGHTS is empty, too"
        raise UsageError(f"{empty} is empty, and {problem}: set {empty}")
    return cfg


def _recorded_values(record: NetworkRecord) -> dict[str, Any]:
    """Return the values of the keys that describe a network and its input."""
    preprocessing = record.preprocessing
    # Checkpoints of version 1 do not have the names of their classes
    num_classes = {"MODEL.NUM_CLASSES": len(record.classes)} if record.classes else {}
    return {
        **num_classes,
        "MODEL.IN_CHANS": record.in_chans,
        "INPUT.RESOLUTION": preprocessing.resolution,
        "INPUT.RESIZE": preprocessing.resize,
        "INPUT.MEAN": list(preprocessing.mean),
        "INPUT.STD": list(preprocessing.std),
        "INPUT.INTERPOLATION": preprocessing.interpolation,
    }


def _with_values(cfg: CfgNode, values: dict[str, Any], source: str, keep: Collection[str]) -> CfgNode:
    """Return the config with values of a record, except keys that are kept, and log the differences."""
    result = cfg.clone()
    result.defrost()
    for key, value in values.items():
        configured = _get(cfg, key)
        if key in keep:
            if configured != value:
                logger.info("%s %s, as given: %s was trained with %s", key, configured, source, value)
            continue
        # A default says nothing about what the user expects
        if configured and configured not in (value, KEYS[key].default):
            logger.info("%s %s, as %s was trained: the config has %s", key, value, source, configured)
        _set(result, key, value)
    result.freeze()
    return result


def _log_arch(cfg: CfgNode, record: NetworkRecord, arch: AnyArch, source: str) -> None:
    if arch is not record.arch:
        if arch_identity(arch) != arch_identity(record.arch):
            logger.info("MODEL.ARCH %s, as given: %s has %s", arch.name, source, record.arch.name)
        return
    name = cfg.MODEL.ARCH
    if name in ("", KEYS["MODEL.ARCH"].default, record.arch.name):
        return
    try:
        is_same = arch_identity(resolve_arch(cfg, name)) == arch_identity(arch)
    except UserError:  # the file may have moved
        is_same = False
    if not is_same:
        logger.info("MODEL.ARCH %s, as %s records: the config has %s", arch.name, source, name)


def _get(cfg: CfgNode, key: str) -> Any:
    return flatten(cfg)[key]


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    cfg[section][name] = value
