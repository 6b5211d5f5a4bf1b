"""Detectors of the model zoo. Only reading their configs and building them needs detectron2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.arch import ArchDef, configs_folder, get_arch
from fbnetv3.model_zoo.zoo_entry import ZooEntry

DETECTOR_PREFIX = "coco/"
"""Folder of the detection configs below `configs/`."""


@dataclass(frozen=True, kw_only=True)
class DetectorEntry(ZooEntry):
    """A detection config with pretrained weights.

    Attributes:
        ap: box AP on COCO val2017 in percent, as given by the source.
    """

    ap: float | None = None

    @property
    def arch(self) -> ArchDef:
        """The architecture of backbone, RPN head and box head."""
        values: Any = CfgNode.load_yaml_with_base(str(configs_folder() / self.name))
        return get_arch(values["MODEL"]["FBNETV3"]["ARCH"])


def is_detector(name: str) -> bool:
    """Return whether the path of a config, below `configs/`, is that of a detector."""
    return name.startswith(DETECTOR_PREFIX)


def detector_config(name: str) -> CfgNode:
    """Return the detection config at a path below `configs/`."""
    from fbnetv3 import detection

    return detection.get_config(name.removeprefix(DETECTOR_PREFIX))


def build_detector(name: str, weights: Path | None, device: str) -> nn.Module:
    """Build the detector of a config in training mode, with random weights if `weights` is None."""
    from detectron2.modeling import build_model

    from fbnetv3 import detection

    cfg = detector_config(name)
    cfg.MODEL.DEVICE = device
    if weights is None:
        return build_model(cfg)
    cfg.MODEL.WEIGHTS = str(weights)  # otherwise building the model loads the weights of a classifier
    return detection.load_detector(build_model(cfg), weights)
