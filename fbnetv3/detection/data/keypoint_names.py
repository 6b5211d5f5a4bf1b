"""Names, mirror images and skeleton of keypoints: read from annotation files and registered with detectron2."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton
from fbnetv3.errors import DataError, UsageError
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.utils.checks import is_number
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

_COCO_KEYPOINTS = 17
_NUMBER_KEY = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
_PAIRS_KEY = "INPUT.KEYPOINT_FLIP_PAIRS"
_EXAMPLE_SIGMA = 0.05
_LINE_COLOR = (255, 255, 255)  # of detectron2's own pictures
_COCO = "keypoints_coco_2017_val"
_SIGMAS_KEY = "TEST.KEYPOINT_OKS_SIGMAS"
_SIDES = (
    ("left", "right"),
    ("Left", "Right"),
    ("LEFT", "RIGHT"),
    ("l_", "r_"),
    ("L_", "R_"),
    ("_l", "_r"),
    ("_L", "_R"),
)


def add_keypoint_config(cfg: CfgNode) -> None:
    """Add the key `INPUT.KEYPOINT_FLIP_PAIRS` to a detectron2 config."""
    # Pairs of keypoint names that a horizontal flip exchanges, such as [["left_eye", "right_eye"]]; [] finds names that
    # differ only in left and right
    cfg.INPUT.KEYPOINT_FLIP_PAIRS = []


def register_keypoints(
    cfg: CfgNode,
    categories: Mapping[str, Sequence[Mapping[str, Any]]],
    recorded: KeypointSkeleton | None = None,
) -> None:
    """Register the keypoints of datasets with detectron2, as `MODEL.KEYPOINT_ON` needs them.

    Args:
        cfg: detectron2's config.
        categories: the categories of each dataset, by name, as in COCO's keypoint annotations: with "keypoints", a list
            of names, "skeleton", a list of pairs of numbers from 1, and, which COCO has not, "flip_pairs", a list of
            pairs of names.
        recorded: the keypoints of a trained detector, which the datasets must have.

    Raises:
        DataError: a dataset has no or several lists of names, or another one than the detector or the first dataset.
        UsageError: a key does not match the number of keypoints.
    """
    first = list(recorded.names) if recorded else []
    source = "the detector" if recorded else "the first dataset"
    for dataset, entries in categories.items():
        metadata = MetadataCatalog.get(dataset)
        registered = list(metadata.get("keypoint_names") or ())
        has_names = any(category.get("keypoints") for category in entries)
        names, skeleton, pairs = (
            _read_keypoints(dataset, entries) if has_names or not registered else (registered, [], None)
        )
        if not first:
            first = names
            check_num_keypoints(cfg, names, dataset)
        elif names != first:
            raise DataError(
                f"{dataset}: its keypoints {first_few(names)} are not those of {source}, {first_few(first)}"
            )
        # Whoever registered the same names has given pairs and skeleton
        if registered != names or cfg.INPUT.KEYPOINT_FLIP_PAIRS:
            if pairs is None or cfg.INPUT.KEYPOINT_FLIP_PAIRS:
                pairs = flip_pairs(names, cfg.INPUT.KEYPOINT_FLIP_PAIRS)
            _set_metadata(metadata, names, pairs, skeleton)
    if first and categories:
        exchanged = MetadataCatalog.get(next(iter(categories))).keypoint_flip_map
        described = ", ".join(f"{left} / {right}" for left, right in exchanged) or "none"
        logger.info("keypoints: %s; a flip exchanges %s", ", ".join(first), described)


def _set_metadata(
    metadata: Metadata,
    names: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    skeleton: Sequence[tuple[int, int]],
) -> None:
    lines = [(names[start - 1], names[end - 1], _LINE_COLOR) for start, end in skeleton]
    values = {"keypoint_names": names, "keypoint_flip_map": pairs, "keypoint_connection_rules": lines}
    for key, value in values.items():
        metadata.__dict__.pop(key, None)  # detectron2 refuses to change metadata
        metadata.set(**{key: value})


def config_skeleton(cfg: CfgNode, datasets: Sequence[str]) -> KeypointSkeleton | None:
    """Return the keypoints of a config's detector as the first of the datasets that has them registered them.

    None if the detector has no keypoints, or no dataset as many.
    """
    count = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    skeletons = map(registered_skeleton, datasets if cfg.MODEL.KEYPOINT_ON else ())
    return next((each for each in skeletons if each and len(each.names) == count), None)


def registered_skeleton(dataset: str) -> KeypointSkeleton | None:
    """Return the keypoints of a dataset from detectron2's metadata; None if it has none, or until it is loaded.

    Raises:
        DataError: whoever registered them has repeated names, or connected others.
    """
    metadata = MetadataCatalog.get(dataset)
    if not (names := metadata.get("keypoint_names")):
        return None
    rules = metadata.get("keypoint_connection_rules") or ()
    pairs = metadata.get("keypoint_flip_map") or ()
    lines = tuple((start, end) for start, end, _ in rules)
    try:
        return KeypointSkeleton(tuple(names), tuple((left, right) for left, right in pairs), lines)
    except ValueError as error:
        raise DataError(f"{dataset}: its keypoints are registered wrongly: {error}") from None


def detector_skeleton(cfg: CfgNode) -> KeypointSkeleton | None:
    """Return the keypoints of a config's detector: those that the checkpoint in `MODEL.WEIGHTS` records.

    Without a record, they are those of the config's datasets, or COCO's for as many. None if it has none, or they are
    unknown.
    """
    if not cfg.MODEL.KEYPOINT_ON:
        return None
    record = read_detector_record(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None
    if record and record.skeleton:
        return record.skeleton
    return config_skeleton(cfg, (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN, _COCO))


def check_num_keypoints(cfg: CfgNode, names: Sequence[str], dataset: str) -> None:
    """Require that the config's numbers of keypoints are those of a dataset."""
    count = len(names)
    if count != cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS:
        raise UsageError(
            f"{dataset} has {count} keypoints ({first_few(names)}), but the network has "
            f"{cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS}: set {_NUMBER_KEY} {count}"
        )
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    if not sigmas and count != _COCO_KEYPOINTS and cfg.DATASETS.TEST:
        raise UsageError(
            f"{_SIGMAS_KEY} is empty: average precision of {count} keypoints needs as many numbers, the standard "
            "deviation of annotating each, relative to the object's size; COCO's are 0.025 (eyes) to 0.107 (hips): set "
            f"it, for example to {_EXAMPLE_SIGMA} for all, or leave DATASETS.TEST empty"
        )
    if sigmas and (len(sigmas) != count or not all(is_number(s, 0, math.inf) and s > 0 for s in sigmas)):
        raise UsageError(
            f"{_SIGMAS_KEY} {list(sigmas)} must be {count} positive numbers, one for each keypoint"
        )


def flip_pairs(names: Sequence[str], configured: Sequence[Sequence[str]] = ()) -> list[tuple[str, str]]:
    """Return pairs of names that a horizontal flip exchanges: those configured, or names that differ in left and right.

    Raises:
        UsageError: a configured pair is not one of names.
    """
    for pair in configured:
        if not _is_name_pair(pair, names):
            raise UsageError(f"{_PAIRS_KEY}: {pair} must be two of the keypoints {', '.join(names)}")
    if configured:
        return [(left, right) for left, right in configured]
    pairs = []
    for name in names:
        for left, right in _SIDES:
            mirrored = name.replace(left, right, 1)
            if mirrored != name and mirrored in names:
                pairs.append((name, mirrored))
                break
    return pairs


def _is_name_pair(pair: Any, names: Sequence[str]) -> bool:
    is_list = isinstance(pair, (list, tuple)) and len(pair) == 2
    return is_list and all(name in names for name in pair)


def _read_keypoints(
    dataset: str, categories: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[tuple[int, int]], list[tuple[str, str]] | None]:
    """Return names, skeleton and, if stated, flip pairs of the keypoints that all categories with keypoints share."""
    with_keypoints = [category for category in categories if category.get("keypoints")]
    if not with_keypoints:
        raise DataError(
            f'{dataset}: no category has "keypoints", the list of their names: add it, or set MODEL.KEYPOINT_ON False'
        )
    names = with_keypoints[0]["keypoints"]
    skeleton = with_keypoints[0].get("skeleton") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'{dataset}: "keypoints" of a category must be a list of names')
    if len(set(names)) < len(names):
        raise DataError(f"{dataset}: the names of keypoints must differ: {first_few(names)}")
    if any(category["keypoints"] != names for category in with_keypoints):
        raise DataError(
            f"{dataset}: its categories have different keypoints, but a detector has one list: use the same names, or "
            "train a detector for each"
        )
    numbers = range(1, len(names) + 1)
    valid = isinstance(skeleton, list) and all(
        isinstance(line, list) and len(line) == 2 and all(end in numbers for end in line)
        for line in skeleton
    )
    if not valid:
        raise DataError(
            f'{dataset}: "skeleton" of a category must be a list of pairs of numbers from 1 to {len(names)}'
        )
    pairs = with_keypoints[0].get("flip_pairs")
    if pairs is not None and not (
        isinstance(pairs, list) and all(_is_name_pair(pair, names) for pair in pairs)
    ):
        raise DataError(f'{dataset}: "flip_pairs" of a category must be a list of pairs of its keypoints')
    stated = None if pairs is None else [(left, right) for left, right in pairs]
    return names, [(start, end) for start, end in skeleton], stated
