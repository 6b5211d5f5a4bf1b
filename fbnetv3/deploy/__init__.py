"""Networks for servers and phones: exported, checked against the original, loaded again in one line.

Nothing of ONNX Runtime or ExecuTorch is imported before it is used.
"""

from fbnetv3.deploy.bundle import Exported, Manifest
from fbnetv3.deploy.detector import Detection, DetectionPredictor
from fbnetv3.deploy.export import export_classifier
from fbnetv3.deploy.formats import FORMATS
from fbnetv3.deploy.int8 import Int8
from fbnetv3.deploy.loading import load
from fbnetv3.deploy.predictor import Prediction, Predictor
from fbnetv3.deploy.runtimes import TorchRuntime

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
