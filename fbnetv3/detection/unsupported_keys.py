"""Keys of detectron2's config that this project's training and evaluation do not honor: setting them is an error."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from fbnetv3.errors import UsageError
from fbnetv3.utils.nested_keys import flatten

_PROPOSALS = "proposals from files are not supported; the detector makes its own"
_ROTATED = "rotated boxes are not supported; annotations and evaluation are of upright boxes"
_SEGMENTATION = "semantic and panoptic segmentation are not supported"

UNSUPPORTED_KEYS = {
    "VERSION": "configs of other versions are not converted; use detectron2's upgrade_config first",
    "MODEL.LOAD_PROPOSALS": _PROPOSALS,
    "DATASETS.PROPOSAL_FILES_TRAIN": _PROPOSALS,
    "DATASETS.PROPOSAL_FILES_TEST": _PROPOSALS,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": _PROPOSALS,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": _PROPOSALS,
    "MODEL.ANCHOR_GENERATOR.ANGLES": _ROTATED,
    "TEST.EXPECTED_RESULTS": "results are not compared with expected ones; read inference/*/results.json",
    "TEST.PRECISE_BN.ENABLED": "BatchNorm statistics are not computed again; MODEL_EMA.ENABLED averages them",
    "TEST.PRECISE_BN.NUM_ITER": "BatchNorm statistics are not computed again; MODEL_EMA.ENABLED averages them",
    "GLOBAL.HACK": "it has no effect",
}
"""Keys that must keep detectron2's default, and why."""

_UNSUPPORTED_VALUES = {
    "MODEL.META_ARCHITECTURE": {"PanopticFPN": _SEGMENTATION, "SemanticSegmentor": _SEGMENTATION},
    "MODEL.PROPOSAL_GENERATOR.NAME": {"RRPN": _ROTATED, "PrecomputedProposals": _PROPOSALS},
    "MODEL.ANCHOR_GENERATOR.NAME": {"RotatedAnchorGenerator": _ROTATED},
    "MODEL.ROI_HEADS.NAME": {"RROIHeads": _ROTATED},
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": {"ROIAlignRotated": _ROTATED},
}
_BOX_WEIGHTS = ("MODEL.RPN.BBOX_REG_WEIGHTS", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS")
_AUGMENTED = "GeneralizedRCNN"


def check_supported_keys(cfg: CfgNode) -> None:
    """Require that a config sets no key that training and evaluation would ignore.

    Raises:
        UsageError: names the first such key and its value.
    """
    problem = next(_find_problems(cfg), None)
    if problem:
        raise UsageError(problem)


def _find_problems(cfg: CfgNode) -> Iterator[str]:
    values = flatten(cfg)
    defaults = flatten(get_cfg())
    for key, names in _UNSUPPORTED_VALUES.items():
        if reason := names.get(values[key]):
            yield f"{key} {values[key]}: {reason}"
    for key in _BOX_WEIGHTS:
        if len(values[key]) != 4:
            yield f"{key} {values[key]}: {_ROTATED}"
    for key, reason in UNSUPPORTED_KEYS.items():
        if _as_list(values[key]) != _as_list(defaults[key]):
            yield f"{key} {values[key]}: {reason}; leave it at {defaults[key]}"
    architecture = cfg.MODEL.META_ARCHITECTURE
    if cfg.TEST.AUG.ENABLED and architecture != _AUGMENTED:
        yield f"TEST.AUG.ENABLED True: detectron2 augments images only for {_AUGMENTED}, not for {architecture}"
    if cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS:
        yield from _find_federated_loss_problems(cfg)
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.KEYPOINT_ON:
        yield "TEST.AUG.ENABLED True: detectron2 does not merge keypoints of augmented images"


def _find_federated_loss_problems(cfg: CfgNode) -> Iterator[str]:
    key = "MODEL.ROI_BOX_HEAD.USE_FED_LOSS True"
    if not cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE:
        yield f"{key} needs MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True"
    name = next(iter(cfg.DATASETS.TRAIN), "")
    if not MetadataCatalog.get(name).get("class_image_count"):
        yield f"{key} needs the number of images of each class, which {name or 'DATASETS.TRAIN'} does not have"


def _as_list(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
