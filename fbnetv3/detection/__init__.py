"""FBNetV3 in detectron2: importing this package registers the backbones, RPN heads and box heads.

All code that imports detectron2 is in this package. None of it needs detectron2's compiled operators.
"""

import warnings

try:
    with warnings.catch_warnings():  # detectron2 uses deprecated features of torch and setuptools
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        import detectron2.engine
        import detectron2.model_zoo  # noqa: F401
except ImportError as error:
    from fbnetv3.errors import MissingPackageError

    raise MissingPackageError(
        f"fbnetv3.detection needs detectron2 ({error}): run `python tools/install_detectron2.py` in a checkout of this "
        "project, or see https://detectron2.readthedocs.io/tutorials/install.html"
    ) from error

from fbnetv3.detection.detection_config import add_fbnetv3_config, config_file, get_config
from fbnetv3.detection.inference.array_predictors import ConfigPredictor, ExportedPredictor
from fbnetv3.detection.inference.detection_run import detect_video
from fbnetv3.detection.inference.optimize_detector import optimize_for_inference
from fbnetv3.detection.models.detector_heads import FBNetV3BoxHead, FBNetV3RPNHead
from fbnetv3.detection.models.fbnetv3_backbone import (
    FBNetV3Backbone,
    build_fbnetv3_fpn_backbone,
    build_retinanet_fbnetv3_fpn_backbone,
)
from fbnetv3.detection.models.torchvision_efficientnet import (
    EfficientNetBackbone,
    EfficientNetBoxHead,
    EfficientNetRPNHead,
)
from fbnetv3.detection.training.detector_checkpoint import FBNetV3Checkpointer, load_detector

__all__ = [
    "ConfigPredictor",
    "EfficientNetBackbone",
    "EfficientNetBoxHead",
    "EfficientNetRPNHead",
    "ExportedPredictor",
    "FBNetV3Backbone",
    "FBNetV3BoxHead",
    "FBNetV3Checkpointer",
    "FBNetV3RPNHead",
    "add_fbnetv3_config",
    "build_fbnetv3_fpn_backbone",
    "build_retinanet_fbnetv3_fpn_backbone",
    "config_file",
    "detect_video",
    "get_config",
    "load_detector",
    "optimize_for_inference",
]
