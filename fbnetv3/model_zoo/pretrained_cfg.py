"""A network's pretrained config in timm's terms: its weights, preprocessing, and first and last layer."""

from __future__ import annotations

from typing import Any

from fbnetv3.arch import ArchDef
from fbnetv3.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from fbnetv3.model_zoo.zoo import ClassifierEntry
from fbnetv3.utils.downloads import is_url

_FIRST_CONV = "stages.0.0.0"
_HEAD = "head"


def pretrained_cfg(
    arch: ArchDef, entry: ClassifierEntry | None = None, *, features_only: bool = False
) -> dict[str, Any]:
    """Return the pretrained config of an architecture, with timm's keys and meaning.

    Args:
        arch: the architecture.
        entry: its weights; default: none, and the preprocessing of ImageNet at the architecture's own resolution.
        features_only: whether the network has no head, and so neither "num_classes" nor "classifier".
    """
    preprocessing = entry.preprocessing if entry else _default_preprocessing(arch)
    side = preprocessing.resolution
    cfg: dict[str, Any] = {
        "architecture": arch.name,
        "input_size": (preprocessing.channels, side, side),
        "pool_size": _last_map_size(arch, side),
        "crop_pct": side / preprocessing.resize,
        "crop_mode": "center",
        "interpolation": preprocessing.interpolation,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "first_conv": _FIRST_CONV if arch.blocks()[0].kind == "conv" else None,
        "paper_name": "FBNetV3: Joint Architecture-Recipe Search using Predictor Pretraining",
        "paper_ids": "arXiv:2006.02049",
    }
    if not features_only:
        cfg |= {"num_classes": entry.num_classes if entry else 1000, "classifier": _HEAD}
        if cfg["first_conv"]:
            cfg["first_conv"] = f"backbone.{cfg['first_conv']}"
    if entry:
        cfg |= {"url" if is_url(entry.weights) else "file": entry.weights, "tag": entry.tag or None}
    return cfg


def _default_preprocessing(arch: ArchDef) -> Preprocessing:
    return Preprocessing(arch.resolution, arch.resize, IMAGENET_MEAN, IMAGENET_STD)


def _last_map_size(arch: ArchDef, side: int) -> tuple[int, int]:
    """Return height and width of the map that global pooling reduces, for an input of `side` x `side` pixels."""
    size = (side, side)
    for block_cost in arch.block_costs(side, side):
        if not block_cost.block.spec.ends_in_pool:
            size = (block_cost.height, block_cost.width)
    return size
