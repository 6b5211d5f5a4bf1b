"""Training configs: defaults, a YAML file (with `_BASE_` inheritance), a recipe, and KEY VALUE overrides."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from fbnetv3.config.defaults import KEYS, get_cfg
from fbnetv3.config.recipe import load_recipe
from fbnetv3.errors import UsageError, suggest
from fbnetv3.utils.files import expand_path, find_config
from fbnetv3.utils.imports import import_modules, user_modules
from fbnetv3.utils.nested_keys import flatten, parse_pairs
from fbnetv3.utils.yaml_files import parse_number, read_with_bases

# Keys whose values may be paths relative to the config file
_PATH_KEYS = ("RECIPE", "MODEL.ARCH", "DISTILL.ARCH", "MODEL.FBNETV3.ARCH")
_TYPE_NAMES = {bool: "True or False", int: "an integer", float: "a number", str: "text", list: "a list"}
# Sections and keys that occur only in a detector's config, which detectron2 reads, or only in a classifier's
_DETECTOR_SECTIONS = {"DATASETS", "DATALOADER", "MODEL_EMA", "TEST"}
_MODEL_PARTS = {
    "ANCHOR_GENERATOR",
    "BACKBONE",
    "FBNETV3",
    "FPN",
    "META_ARCHITECTURE",
    "RETINANET",
    "ROI_HEADS",
    "RPN",
}
_CLASSIFIER_SECTIONS = {"CHECKPOINT", "DATA", "DISTILL", "EMA", "EVAL", "RECIPE"}

# Files of a run's folder: its config, and what tells it from other folders
RUN_CONFIG = "config.yaml"
_RUN_MARKERS = ("checkpoints", "model_final.pth")


def load_config(file: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """Load a training config from YAML and freeze it.

    In increasing precedence: the defaults, the file, its `RECIPE`, and `overrides`, which are KEY VALUE pairs as on the
    command line. Modules named by `IMPORTS` are imported.

    Raises:
        UsageError: the file is missing or not YAML, a key is unknown (the message suggests similar ones), or a value
            has the wrong type or is out of range.
    """
    return build_config(read_config_file(file), overrides, f"{file}: ")


def build_config(values: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "") -> CfgNode:
    """Build a training config from the content of a file, nested or with dotted keys; see `load_config`.

    `where` begins messages about these values.
    """
    # The file, then the command line, which may name the recipe and the modules
    cfg = get_cfg()
    _merge(cfg, values, where)
    pairs = {key: _parse_override(key, text) for key, text in parse_pairs(overrides).items()}
    _merge(cfg, pairs)
    import_modules(cfg.IMPORTS)
    # Include the modules of --import, so that a dump of the config is complete
    cfg.IMPORTS = user_modules()
    if cfg.RECIPE:
        recipe = load_recipe(expand_path(cfg.RECIPE))
        _merge(cfg, recipe.to_config(), f"{cfg.RECIPE}: ")
        _merge(cfg, pairs)  # the command line also overrides the recipe
    # The recipe's values are now part of the config, so a dump of it does not need the file
    cfg.RECIPE = ""
    check_config(cfg)
    cfg.freeze()
    return cfg


def read_config_file(file: str | os.PathLike) -> dict[str, Any]:
    """Read the config file of a classifier or detector and its `_BASE_` files, as nested dicts.

    A config that ships with the package is found in any folder. The config.yaml of a run describes that run, wherever
    its folder has been moved: OUTPUT_DIR becomes the folder.
    """
    file = find_config(file)
    values = read_with_bases(file, _PATH_KEYS)
    path = Path(file)
    if path.name == RUN_CONFIG and any((path.parent / name).exists() for name in _RUN_MARKERS):
        values["OUTPUT_DIR"] = str(path.parent)
    return values


def is_detection_config(file: str | os.PathLike) -> bool:
    """Return whether a config file, including its `_BASE_` files, describes a detector rather than a classifier.

    A detector's config has a section DATASETS, DATALOADER, TEST or MODEL_EMA, or a key such as MODEL.META_ARCHITECTURE.
    """
    values = read_config_file(file)
    model = values.get("MODEL")
    parts = _MODEL_PARTS & set(model if isinstance(model, dict) else ())
    detector = sorted(_DETECTOR_SECTIONS & set(values)) + [f"MODEL.{key}" for key in sorted(parts)]
    classifier = sorted(_CLASSIFIER_SECTIONS & set(values))
    if detector and classifier:
        raise UsageError(
            f"{file}: has keys of a detector ({detector[0]}) and of a classifier ({classifier[0]}): remove one of them"
        )
    return bool(detector)


def _merge(cfg: CfgNode, values: Mapping[str, Any], where: str = "") -> None:
    """Set the values of nested or dotted keys; `where` begins error messages."""
    for name, value in flatten(values).items():
        section_keys = [key for key in KEYS if key.startswith(f"{name}.")]
        if section_keys and value == {}:
            continue
        if section_keys:
            raise UsageError(
                f"{where}{name} {value!r} must be a section, with keys such as {section_keys[0]}"
            )
        if name not in KEYS:
            raise UsageError(f"{where}unknown key {name}: {suggest(name, KEYS)}")
        types = KEYS[name].types
        # YAML reads 1e-3 as text and 1 as an integer; literals on the command line may be tuples
        if float in types and not isinstance(value, bool):
            value = parse_number(value)
            value = float(value) if isinstance(value, int) else value
        if list in types and isinstance(value, tuple):
            value = list(value)
        if name == "MODEL.FREEZE" and type(value) is int:  # a number of stages
            value = str(value)
        if type(value) not in types:
            expected = "an integer or auto" if KEYS[name].auto else _TYPE_NAMES[types[0]]
            raise UsageError(f"{where}{name} {value!r} must be {expected}")
        section, _, key = name.rpartition(".")
        (cfg[section] if section else cfg)[key] = value


def _parse_override(key: str, text: str) -> Any:
    """Parse an override as a Python literal unless its key holds text; anything else stays text."""
    if key in KEYS and KEYS[key].types == (str,):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if key in KEYS and KEYS[key].item_type is str and isinstance(KEYS[key].default, list):
            # Shells remove quotes: [cat=2, dog=3]
            items = text.removeprefix("[").removesuffix("]").split(",")
            return [item.strip().strip("'\"") for item in items if item.strip()]
        return text


def check_config(cfg: CfgNode) -> None:
    """Check each value of a config, and values that depend on each other.

    Raises:
        UsageError: names the key and the allowed values.
    """
    values = flatten(cfg)
    for name, key in KEYS.items():
        if not key.accepts(values[name]):
            raise UsageError(f"{name} {values[name]!r} must be {key.describe()}")
    problem = next(_contradictions(cfg), None)
    if problem:
        raise UsageError(problem)


def _contradictions(cfg: CfgNode) -> Iterator[str]:
    """Yield what is wrong with values that depend on each other, and with lists."""
    if not cfg.OUTPUT_DIR:
        yield "OUTPUT_DIR is empty: set it to a folder"
    channels = cfg.MODEL.IN_CHANS
    for key in ("MEAN", "STD"):
        values = cfg.INPUT[key]
        if values and channels and len(values) != channels:
            yield f"INPUT.{key} {values} has {len(values)} values, but MODEL.IN_CHANS is {channels}"
    if min(cfg.INPUT.STD, default=1) <= 0:
        yield f"INPUT.STD {cfg.INPUT.STD} must have only positive values"
    scale = cfg.INPUT.CROP_SCALE
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        yield f"INPUT.CROP_SCALE {scale} must be [smallest, largest] with 0 < smallest <= largest <= 1"
    yield from _solver_contradictions(cfg.SOLVER)
    if bool(cfg.DISTILL.ARCH) != bool(cfg.DISTILL.WEIGHTS) or (cfg.DISTILL.CACHE and not cfg.DISTILL.ARCH):
        yield "DISTILL.ARCH and DISTILL.WEIGHTS must be set together; DISTILL.CACHE needs both"
    if cfg.DISTILL.CACHE and cfg.DATA.ON_DEVICE == "always":
        yield "DATA.ON_DEVICE always does not work with cached logits (DISTILL.CACHE): set it to never"
    for key in ("MIXUP", "CUTMIX"):
        if cfg.DISTILL.CACHE and cfg.INPUT[key]:
            yield f"INPUT.{key} {cfg.INPUT[key]} does not work with cached logits (DISTILL.CACHE): set it to 0"


def _solver_contradictions(solver: CfgNode) -> Iterator[str]:
    betas = solver.ADAM_BETAS
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        yield f"SOLVER.ADAM_BETAS {betas} must be two numbers in [0, 1)"
    # 0 is replaced once the number of images is known
    if solver.BATCH_SIZE == 1:
        yield "SOLVER.BATCH_SIZE 1 must be at least 2, or 0 to fit the number of images"
    if 0 < solver.BATCH_SIZE < 2 * solver.ACCUMULATE:
        yield (
            f"SOLVER.ACCUMULATE {solver.ACCUMULATE} is too large for SOLVER.BATCH_SIZE {solver.BATCH_SIZE}: "
            "each part needs at least 2 images"
        )
    if -1 < solver.WARMUP_EPOCHS < 0:
        yield f"SOLVER.WARMUP_EPOCHS {solver.WARMUP_EPOCHS} must be at least 0, or -1 for a tenth of the run"
    if solver.EPOCHS and solver.WARMUP_EPOCHS > solver.EPOCHS:
        yield f"SOLVER.WARMUP_EPOCHS {solver.WARMUP_EPOCHS} is longer than SOLVER.EPOCHS {solver.EPOCHS}"
