"""The zoo's detectors: configs of detectron2's kind, with weights and box AP. Only building one needs detectron2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.arch import ArchDef, configs_folder, get_arch
from fbnetv3.model_zoo.zoo_entry import TrainedConfig

FOLDER = "coco/"


@dataclass(frozen=True, kw_only=True)
class DetectorEntry(TrainedConfig):
    """A detection config with trained weights.

    Attributes:
        ap: box AP on COCO val2017 in per cent that its source gives.
    """

    ap: float | None = None

    @property
    def arch(self) -> ArchDef:
        """The architecture of trunk, RPN head and box head."""
        values: Any = CfgNode.load_yaml_with_base(str(configs_folder() / self.name))
        return get_arch(values["MODEL"]["FBNETV3"]["ARCH"])


def is_detector(name: str) -> bool:
    """Whether a config's path is that of a detector."""
    return name.startswith(FOLDER)


def detector_config(name: str) -> CfgNode:
    """detectron2's config of a detector, by its path below `configs/`.

    Raises:
        ImportError: detectron2 is not installed; the text says what to run.
        UnknownNameError: no such config; the text suggests close names.
    """
    from fbnetv3 import detection

    return detection.get_config(name.removeprefix(FOLDER))


def build_detector(name: str, weights: Path | None, device: str) -> nn.Module:
    """The detector of a config, in training mode, with weights or without.

    Raises:
        WeightsError: the weights do not fit.
    """
    from detectron2.modeling import build_model

    from fbnetv3 import detection

    cfg = detector_config(name)
    cfg.MODEL.DEVICE = device
    if weights is None:
        return build_model(cfg)
    cfg.MODEL.WEIGHTS = str(weights)  # so that no classifier's are loaded first
    return detection.load_detector(build_model(cfg), weights)
