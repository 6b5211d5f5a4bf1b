"""Detector configs: the keys added to detectron2's config, the shipped configs, and loading for the tools."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY

from fbnetv3.arch.detector_cost import list_detector_configs
from fbnetv3.config.loading import read_config_file
from fbnetv3.detection.anchors.anchor_fitting import FIT_CHOICES, add_anchor_config
from fbnetv3.detection.data.augmentation.augmentation_keys import (
    add_augmentation_config,
    check_augmentation,
)
from fbnetv3.detection.data.custom_datasets import drop_unrelated_images
from fbnetv3.detection.data.detection_datasets import register_custom_datasets, set_num_classes
from fbnetv3.detection.data.keypoint_names import add_keypoint_config
from fbnetv3.detection.models.classifier_preprocessing import PREPROCESSING_CHOICES
from fbnetv3.detection.unsupported_keys import check_supported_keys
from fbnetv3.errors import UnknownNameError, UsageError, suggest
from fbnetv3.utils.imports import import_modules, user_modules
from fbnetv3.utils.nested_keys import flatten, nest, parse_pairs
from fbnetv3.utils.text import one_line

logger = logging.getLogger(__name__)

_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
}
_CHOICES = {
    "MODEL.ANCHOR_GENERATOR.FIT": FIT_CHOICES,
    "MODEL.FBNETV3.PREPROCESSING": PREPROCESSING_CHOICES,
    "SOLVER.OPTIMIZER": ("SGD", "AdamW"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
}
_RENAMED_KEYS = {
    f"DATASETS.CUSTOM.{part}_JSON": f"DATASETS.CUSTOM.{part}_ANNOTATIONS" for part in ("TRAIN", "TEST")
}
_POSITIVE_KEYS = (
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINTS_TO_KEEP",
)

# yacs reports a value whose type differs from the default's only in the text of a ValueError:
#   Type mismatch (<class 'int'> vs. <class 'str'>) with values (90000 vs. many) for config key: SOLVER.MAX_ITER
# If a later version of yacs changes the wording, the pattern does not match and users see yacs' own text.
_TYPE_MISMATCH = re.compile(
    r"Type mismatch \(<class '(?:[\w.]+\.)?(?P<type>\w+)'> vs\. <class '[\w.]+'>\) "
    r"with values \(.* vs\. (?P<value>.*)\) for config key: (?P<key>\S+)"
)
_TYPE_NOUNS = {
    "bool": "True or False",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "tuple": "a list",
    "list": "a list",
    "CfgNode": "a mapping",
}


def add_fbnetv3_config(cfg: CfgNode) -> None:
    """Add this project's keys, with their defaults, to a detectron2 config. Call this before merging config files."""
    # Python modules to import first, which register your own backbones, heads or datasets
    cfg.IMPORTS = []

    cfg.MODEL.FBNETV3 = CfgNode()
    # Architecture of trunk, RPN head and box head: a registered name or the path of a YAML file. Architectures of
    # classifiers work too.
    cfg.MODEL.FBNETV3.ARCH = "fbnetv3_a_det"
    # Feature maps that build_fbnetv3_backbone returns: "res4" for C4. FPNs read MODEL.FPN.IN_FEATURES instead.
    cfg.MODEL.FBNETV3.OUT_FEATURES = ["res4"]
    # Norm of trunk, RPN head and box head: BN, SyncBN, naiveSyncBN, naiveSyncBN_N, FrozenBN, GN, LN
    cfg.MODEL.FBNETV3.NORM = "BN"
    # Number of blocks in the RPN head; 0 copies the last row of the C4 trunk
    cfg.MODEL.FBNETV3.RPN_BLOCKS = 0
    # A classifier's weights that initialize trunk and box head: a file, a URL, or "zoo://" followed by a model zoo
    # entry. The classifier must have the same architecture. "" initializes randomly. Ignored if MODEL.WEIGHTS is set.
    cfg.MODEL.FBNETV3.WEIGHTS = ""
    # If the classifier of WEIGHTS was trained on other inputs than INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD
    # say: "check" stops with an error that shows its values, "classifier" takes these over, "config" changes nothing
    cfg.MODEL.FBNETV3.PREPROCESSING = "check"
    # Use channels-last (NHWC) memory format, which is faster on CPUs and on GPUs with tensor cores
    cfg.MODEL.FBNETV3.CHANNELS_LAST = True

    cfg.LOG = CfgNode()
    # Keep a table of all runs, results.csv, in the folder that contains OUTPUT_DIR
    cfg.LOG.RESULTS = True

    cfg.MODEL_EMA = CfgNode()
    # Keep an exponential moving average (EMA) of weights and BatchNorm statistics, and evaluate the averaged weights
    cfg.MODEL_EMA.ENABLED = False
    # Weight of the previous average in each step
    cfg.MODEL_EMA.DECAY = 0.9998

    # Your own dataset, in any format of fbnetv3.detection.data.formats. It is registered as "custom_train" and
    # "custom_test", which replace DATASETS.TRAIN and DATASETS.TEST.
    cfg.DATASETS.CUSTOM = CfgNode()
    # A YOLO data.yaml, or a folder with a training and a validation or test split; sets TRAIN_ANNOTATIONS and
    # TEST_ANNOTATIONS
    cfg.DATASETS.CUSTOM.DATA = ""
    # Annotations to train on: a file or a folder; "" keeps DATASETS.TRAIN and DATASETS.TEST
    cfg.DATASETS.CUSTOM.TRAIN_ANNOTATIONS = ""
    # Folder of the training images; "" looks for it near the annotations
    cfg.DATASETS.CUSTOM.TRAIN_IMAGES = ""
    # Annotations to evaluate on; "" for no evaluation
    cfg.DATASETS.CUSTOM.TEST_ANNOTATIONS = ""
    # Folder of the test images; "" looks for it near the annotations
    cfg.DATASETS.CUSTOM.TEST_IMAGES = ""
    # Split to evaluate on, "val" or "test", of annotations that have both
    cfg.DATASETS.CUSTOM.TEST_SPLIT = "val"
    # Format of the annotations: coco, lvis, yolo, voc or csv; "auto" determines it from the files
    cfg.DATASETS.CUSTOM.FORMAT = "auto"

    add_augmentation_config(cfg)
    add_keypoint_config(cfg)
    add_anchor_config(cfg)

    # "SGD", or "AdamW", which ignores SOLVER.MOMENTUM and SOLVER.NESTEROV
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Number of checkpoints to keep; older ones are deleted
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 2
    # End the run after this number of evaluations (TEST.EVAL_PERIOD) without gain in AP; 0 never ends it early
    cfg.SOLVER.PATIENCE = 0
    # Data type of mixed precision (SOLVER.AMP.ENABLED): "float16" on GPUs, "bfloat16" also on CPUs
    cfg.SOLVER.AMP.DTYPE = "float16"


def config_file(name: str) -> str:
    """Return the path of a shipped config, for `cfg.merge_from_file`: "faster_rcnn_fbnetv3_a_C4", ".yaml" optional."""
    files = list_detector_configs()
    stem = name.removesuffix(".yaml")
    if stem not in files:
        raise UnknownNameError(f"unknown detection config '{name}': {suggest(stem, files)}")
    return str(files[stem])


def get_config(name: str) -> CfgNode:
    """Return detectron2's config with this project's keys and the values of a shipped config; see `config_file`."""
    cfg = get_cfg()
    add_fbnetv3_config(cfg)
    cfg.merge_from_file(config_file(name))
    return cfg


def load_detection_config(file: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """Load a YAML config and its `_BASE_` files, with KEY VALUE pairs on top, and freeze it.

    Modules named by `IMPORTS` are imported and the datasets of `DATASETS.CUSTOM` registered. A number of classes of 0
    becomes that of the dataset. A relative file name in `MODEL.FBNETV3.ARCH` is looked up next to the config file
    first. Without a GPU, `MODEL.DEVICE` becomes "cpu".
    Files are read as plain YAML: tags that would run code are refused. Errors name the file and the key.
    """
    values = {key: value for key, value in read_config_file(file).items() if key != "_BASE_"}
    return build_detection_config(values, overrides, f"{file}: ")


def build_detection_config(
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    where: str = "",
    *,
    ignore_unknown: bool = False,
) -> CfgNode:
    """Build a config from the content of a file, nested or with dotted keys; see `load_detection_config`.

    `where` begins messages about these values. With `ignore_unknown`, keys that this version does not have are left
    out, as another version may have written them.
    """
    cfg = get_cfg()
    add_fbnetv3_config(cfg)
    known_keys = list(flatten(cfg))
    if ignore_unknown:
        values = {key: value for key, value in flatten(values).items() if _is_known(key, known_keys)}
    _require_known_keys(flatten(values), known_keys, where)
    with _yacs_errors_as_usage_errors(where):
        cfg.merge_from_other_cfg(CfgNode(nest(flatten(values))))
    pairs = parse_pairs(overrides)
    _require_known_keys(pairs, known_keys)
    with _yacs_errors_as_usage_errors():
        cfg.merge_from_list([item for pair in pairs.items() for item in pair])
    drop_unrelated_images(cfg, pairs)

    import_modules(cfg.IMPORTS)
    # Include modules from --import, so that a dump of the config is complete
    cfg.IMPORTS = user_modules()
    register_custom_datasets(cfg)
    set_num_classes(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.info("no GPU available: setting MODEL.DEVICE to cpu")
        cfg.MODEL.DEVICE = "cpu"
    _check_values(cfg)
    cfg.freeze()
    return cfg


def _require_known_keys(keys: Iterable[str], known_keys: Sequence[str], where: str = "") -> None:
    for key in keys:
        if key in _RENAMED_KEYS:
            raise UsageError(f"{where}{key} is now {_RENAMED_KEYS[key]}: rename it")
        if not _is_known(key, known_keys):
            raise UsageError(f"{where}unknown key {key}: {suggest(key, known_keys)}")


def _is_known(key: str, known_keys: Sequence[str]) -> bool:
    # Sections pass too, and so do mappings under plain keys, whose wrong type yacs reports
    return any(f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}.") for name in known_keys)


@contextlib.contextmanager
def _yacs_errors_as_usage_errors(where: str = "") -> Iterator[None]:
    """Turn yacs' errors about values into a `UsageError`; `where` begins the message."""
    try:
        yield
    except (ValueError, KeyError, AssertionError, AttributeError, TypeError, SyntaxError) as error:
        message = one_line(error.args[0] if error.args else error)
        if mismatch := _TYPE_MISMATCH.fullmatch(message):
            noun = _TYPE_NOUNS.get(mismatch["type"], f"of type {mismatch['type']}")
            message = f"{mismatch['key']} {mismatch['value']} must be {noun}"
        raise UsageError(f"{where}{message}") from None


def _check_values(cfg: CfgNode) -> None:
    values = flatten(cfg)
    for key in _POSITIVE_KEYS:
        if values[key] < 1:
            raise UsageError(f"{key} {values[key]!r} must be at least 1")
    if not 0 <= cfg.MODEL_EMA.DECAY < 1:
        raise UsageError(f"MODEL_EMA.DECAY {cfg.MODEL_EMA.DECAY} must be in [0, 1)")
    # Names that are registered with detectron2, or fixed
    registered = {
        key: [name for name, _ in registry] for key, registry in _REGISTRIES.items() if values[key]
    }
    for key, choices in {**_CHOICES, **registered}.items():
        if values[key] not in choices:
            raise UsageError(f"{key} {values[key]!r} is unknown: {suggest(values[key], choices)}")
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise UsageError(
            f"MODEL.DEVICE {cfg.MODEL.DEVICE!r} must be a device, such as cpu, cuda or cuda:1"
        ) from None
    _check_solver(cfg)
    check_supported_keys(cfg)
    check_augmentation(cfg)
    if not cfg.OUTPUT_DIR:
        raise UsageError("OUTPUT_DIR is empty: set it to a folder")


def _check_solver(cfg: CfgNode) -> None:
    if cfg.SOLVER.BASE_LR <= 0:  # the schedule divides by it
        raise UsageError(f"SOLVER.BASE_LR {cfg.SOLVER.BASE_LR} must be positive")
    is_float16 = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
    if is_float16 and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise UsageError("SOLVER.AMP.ENABLED needs a GPU: set it to False, or SOLVER.AMP.DTYPE to bfloat16")
    if cfg.SOLVER.PATIENCE < 0:
        raise UsageError(f"SOLVER.PATIENCE {cfg.SOLVER.PATIENCE} must be at least 0")
    if cfg.SOLVER.PATIENCE and not (cfg.TEST.EVAL_PERIOD and cfg.DATASETS.TEST):
        raise UsageError(
            f"SOLVER.PATIENCE {cfg.SOLVER.PATIENCE} needs evaluations during training: set TEST.EVAL_PERIOD and "
            "DATASETS.TEST"
        )
