"""Training configs: the defaults, a YAML file on top (`_BASE_` inherits), and KEY VALUE pairs on top of that."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from fbnetv3.config.defaults import _C
from fbnetv3.config.recipe import load_recipe
from fbnetv3.errors import UsageError, suggest
from fbnetv3.utils.imports import import_modules
from fbnetv3.utils.yaml_files import read_with_bases

_CHOICES = {
    "INPUT.CROP": ("random_resized", "padded", "none"),
    "INPUT.AUTO_AUGMENT": ("none", "autoaugment", "randaugment"),
    "INPUT.INTERPOLATION": ("bilinear", "bicubic", "nearest"),
    "SOLVER.PRECISION": ("float32", "bfloat16", "float16"),
    "SOLVER.SCHEDULE": ("cosine", "exponential"),
}
_AT_LEAST_ONE = (
    "SOLVER.ACCUMULATE",
    "SOLVER.EPOCHS",
    "EVAL.PERIOD",
    "EVAL.BATCH_SIZE",
    "CHECKPOINT.PERIOD",
    "CHECKPOINT.KEEP",
    "LOG.PERIOD",
    "DISTILL.VIEWS",
    "MODEL.IN_CHANS",
)
_AT_LEAST_ZERO = (
    "SEED",
    "MODEL.NUM_CLASSES",
    "DATA.WORKERS",
    "DATA.MAX_CORRUPT",
    "INPUT.RESOLUTION",
    "INPUT.RESIZE",
    "INPUT.CROP_PADDING",
    "INPUT.MIXUP",
    "DISTILL.RESOLUTION",
    "CHECKPOINT.STEPS",
    "SOLVER.LR_BATCH_SIZE",
    "SOLVER.LR",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WARMUP_EPOCHS",
)
_SHARES = (
    "MODEL.DROP_RATE",
    "MODEL.DROP_PATH_RATE",
    "SOLVER.MOMENTUM",
    "SOLVER.LABEL_SMOOTHING",
    "SOLVER.RMSPROP_ALPHA",
    "EMA.DECAY",
)
# Beyond what anybody means; a slip would show as a machine without memory, or as a loss that is no number.
_AT_MOST = {
    **dict.fromkeys(("SOLVER.EPOCHS", "SOLVER.BATCH_SIZE", "SOLVER.LR_BATCH_SIZE", "EVAL.BATCH_SIZE"), 10**7),
    **dict.fromkeys(("EVAL.PERIOD", "CHECKPOINT.PERIOD", "CHECKPOINT.STEPS", "CHECKPOINT.KEEP", "LOG.PERIOD"), 10**9),
    **dict.fromkeys(("INPUT.RESOLUTION", "DISTILL.RESOLUTION"), 8_192),
    **dict.fromkeys(("INPUT.RESIZE", "INPUT.CROP_PADDING"), 16_384),
    **dict.fromkeys(("SOLVER.LR", "SOLVER.WEIGHT_DECAY", "INPUT.MIXUP"), 10**6),
    "MODEL.NUM_CLASSES": 10**6,
    "DATA.WORKERS": 10**3,
    "DISTILL.VIEWS": 10**6,
}
# Keys that name a YAML file, which may lie beside the config.
_BESIDE = ("RECIPE", "MODEL.ARCH", "DISTILL.ARCH", "MODEL.FBNETV3.ARCH")
_TYPES = {bool: "True or False", int: "a whole number", float: "a number", str: "text", list: "a list"}
_FACTORS = ("SOLVER.DECAY", "SOLVER.WARMUP_FACTOR", "SOLVER.RMSPROP_EPS", "DISTILL.WEIGHT")


def get_cfg() -> CfgNode:
    """A copy of the defaults, for `merge_from_file` and `merge_from_list`."""
    return _C.clone()


def load_config(file: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """The config of a YAML file, its `RECIPE` on top if it names one, and KEY VALUE pairs on top of that; frozen.

    Raises:
        UsageError: no such file, not YAML, an unknown key (the text suggests close ones), a wrong type or value.
    """
    cfg = get_cfg()
    _merge(cfg, read_config_file(str(file)), f"{file}: ")
    if len(overrides) % 2:
        raise UsageError(f"{overrides[-1]}: has no value; overrides come as KEY VALUE pairs")
    pairs = dict(zip(overrides[::2], overrides[1::2], strict=True))
    if recipe := pairs.get("RECIPE", cfg.RECIPE):
        _merge(cfg, load_recipe(Path(recipe).expanduser()).to_config(), f"{recipe}: ")
    for key, text in pairs.items():
        if key == "RECIPE":
            continue
        section, leaf = _resolve(cfg, key)
        value = text if isinstance(section[leaf], str) else _decoded(text)
        section[leaf] = _coerced(key, value, section[leaf])
    import_modules(cfg.IMPORTS)
    cfg.RECIPE = ""  # its values are in now; a dumped config gives the same run without the file
    check_config(cfg)
    cfg.freeze()
    return cfg


def read_config_file(file: str | os.PathLike) -> Mapping[str, Any]:
    """A config file, of classifiers or detectors, with its `_BASE_` files below it, as nested mappings.

    Raises:
        UsageError: no such file, or not YAML.
    """
    return read_with_bases(str(file), _BESIDE)


def _merge(cfg: CfgNode, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in cfg:
            raise UsageError(f"{where}unknown key {name}: {suggest(name, _keys(_C))}")
        if not isinstance(cfg[key], CfgNode):
            cfg[key] = _coerced(name, value, cfg[key], where)
        elif isinstance(value, Mapping):
            _merge(cfg[key], value, where, f"{name}.")
        else:
            raise UsageError(f"{where}{name} {value!r} is a section: it holds {', '.join(cfg[key])}")


def _resolve(cfg: CfgNode, key: str) -> tuple[CfgNode, str]:
    """The section that holds a key such as "SOLVER.LR", and the key's name in it."""
    if key not in _keys(_C):
        raise UsageError(f"unknown key {key}: {suggest(key, _keys(_C))}")
    *sections, leaf = key.split(".")
    for section in sections:
        cfg = cfg[section]
    return cfg, leaf


def _decoded(text: str) -> Any:
    """The value that a text on the command line stands for, or the text itself."""
    try:
        return CfgNode._decode_cfg_value(text)
    except (TypeError, MemoryError, RecursionError):  # {[]: 1}, and more brackets than Python's parser takes
        return text


def _coerced(key: str, value: Any, default: Any, where: str = "") -> Any:
    """The value in the default's type: a whole number will do for a number, nothing else for anything else."""
    if isinstance(value, int) and abs(value) >= 2**63:
        shown = value if value.bit_length() < 200 else f"of {value.bit_length()} bits"
        raise UsageError(f"{where}{key} {shown} is not below 2^63")
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"{where}{key} {value!r} holds a NUL, which no name can")
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, float) and isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML takes 1e-3 for text
            return float(value)
    if isinstance(default, list) and isinstance(value, (list, tuple)):
        return list(value)
    if type(value) is not type(default):
        raise UsageError(f"{where}{key} {value!r} is not {_TYPES[type(default)]}")
    return value


def flat_keys(cfg: CfgNode) -> dict[str, Any]:
    """Every key of a config with its value, as in {"SOLVER.LR": 0.1}."""
    found = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            found.update({f"{key}.{name}": inner for name, inner in flat_keys(value).items()})
        else:
            found[key] = value
    return found


def _keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in node.items():
        keys += _keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


def check_config(cfg: CfgNode) -> None:
    """Refuse values that make no sense, by name.

    Raises:
        UsageError: names the key, its value, and what it can be.
    """

    def value(key: str) -> Any:
        section, leaf = _resolve(cfg, key)
        return section[leaf]

    for key, choices in _CHOICES.items():
        if value(key) not in choices:
            raise UsageError(f"{key} {value(key)!r} is not one of {', '.join(choices)}")
    for keys, accepted, text in (
        (("SOLVER.BATCH_SIZE",), lambda v: v >= 2, "at least 2, as BatchNorm needs"),
        (_AT_LEAST_ONE, lambda v: v >= 1, "at least 1"),
        (_AT_LEAST_ZERO, lambda v: 0 <= v < float("inf"), "at least 0"),
        (_SHARES, lambda v: 0 <= v < 1, "in [0, 1)"),
        (_FACTORS, lambda v: 0 < v <= 1, "in (0, 1]"),
    ):
        for key in keys:
            if isinstance(value(key), bool) or not accepted(value(key)):
                raise UsageError(f"{key} {value(key)!r} is not {text}")
    if 0 < cfg.INPUT.MIXUP < 1e-6:  # as float32, the distribution would have none
        raise UsageError(f"INPUT.MIXUP {cfg.INPUT.MIXUP!r} is neither 0, for none, nor at least 1e-6")
    if not cfg.OUTPUT_DIR:
        raise UsageError("OUTPUT_DIR is empty: name a folder")
    if not all(isinstance(folder, str) for folder in cfg.MODEL.ARCH_DIRS):
        raise UsageError(f"MODEL.ARCH_DIRS {list(cfg.MODEL.ARCH_DIRS)} is not a list of folders")
    for key in ("INPUT.MEAN", "INPUT.STD"):
        numbers = value(key)
        if len(numbers) != cfg.MODEL.IN_CHANS or not all(type(n) in (int, float) and abs(n) <= 1e6 for n in numbers):
            raise UsageError(f"{key} {list(numbers)} does not have a number for each of {cfg.MODEL.IN_CHANS} channels")
    if any(n <= 0 for n in cfg.INPUT.STD):
        raise UsageError(f"INPUT.STD {list(cfg.INPUT.STD)} has a value that is not positive")
    if any(n < 1e-6 for n in cfg.INPUT.STD):
        raise UsageError(f"INPUT.STD {list(cfg.INPUT.STD)} has a value below 1e-6")
    for key, most in _AT_MOST.items():
        if value(key) > most:
            raise UsageError(f"{key} {value(key)!r} is more than {most:,}")
    if cfg.MODEL.IN_CHANS not in (1, 3):
        raise UsageError(f"MODEL.IN_CHANS {cfg.MODEL.IN_CHANS} is neither 3 (RGB) nor 1 (grey)")
    scale = list(cfg.INPUT.CROP_SCALE)
    if len(scale) != 2 or not all(type(n) in (int, float) for n in scale) or not 0 < scale[0] <= scale[1] <= 1:
        raise UsageError(f"INPUT.CROP_SCALE {scale} is not two shares of the area, smallest and largest")
    if not 0 <= cfg.INPUT.RANDOM_ERASING <= 1:
        raise UsageError(f"INPUT.RANDOM_ERASING {cfg.INPUT.RANDOM_ERASING} is not in [0, 1]")
    if cfg.SOLVER.BATCH_SIZE < 2 * cfg.SOLVER.ACCUMULATE:
        raise UsageError(
            f"SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE} leaves less than 2 of {cfg.SOLVER.BATCH_SIZE} images to a part"
        )
    if bool(cfg.DISTILL.ARCH) != bool(cfg.DISTILL.WEIGHTS):
        raise UsageError("DISTILL.ARCH and DISTILL.WEIGHTS go together: a teacher is a network with its weights")
    if cfg.DISTILL.CACHE and not cfg.DISTILL.ARCH:
        raise UsageError("DISTILL.CACHE holds a teacher's answers: name it in DISTILL.ARCH and DISTILL.WEIGHTS")
    if cfg.DISTILL.CACHE and cfg.INPUT.MIXUP:
        raise UsageError(f"INPUT.MIXUP {cfg.INPUT.MIXUP}: no answer in DISTILL.CACHE is to a mixture; set it to 0")
    if cfg.SOLVER.WARMUP_EPOCHS > cfg.SOLVER.EPOCHS:
        raise UsageError(
            f"SOLVER.WARMUP_EPOCHS {cfg.SOLVER.WARMUP_EPOCHS} is longer than SOLVER.EPOCHS {cfg.SOLVER.EPOCHS}"
        )
