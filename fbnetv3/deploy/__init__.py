"""Networks for servers and phones: exported, checked against the original, loaded again in one line.

Nothing of ONNX Runtime or ExecuTorch is imported before it is used.
"""

from fbnetv3.deploy.classifier_export import export_classifier
from fbnetv3.deploy.exported_folder import Exported, Manifest
from fbnetv3.deploy.formats.export_formats import FORMATS
from fbnetv3.deploy.formats.int8 import Int8
from fbnetv3.deploy.formats.runtimes import TorchRuntime
from fbnetv3.deploy.open_exported import load
from fbnetv3.deploy.predictors.classifier_predictor import Prediction, Predictor
from fbnetv3.deploy.predictors.detector_predictor import Detection, DetectionPredictor

__all__ = [
    "FORMATS",
    "Detection",
    "DetectionPredictor",
    "Exported",
    "Int8",
    "Manifest",
    "Prediction",
    "Predictor",
    "TorchRuntime",
    "export_classifier",
    "load",
]
