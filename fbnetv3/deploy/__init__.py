"""Export networks for servers and phones, verify the exports against the originals, and load them.

ONNX Runtime and ExecuTorch are imported only when they are used.
"""

from fbnetv3.deploy.classifier_export import export_classifier
from fbnetv3.deploy.exported_folder import ExportedNetwork, Manifest
from fbnetv3.deploy.formats.export_format import FORMATS, ExportFormat, Runtime
from fbnetv3.deploy.formats.quantization import PrecisionSettings
from fbnetv3.deploy.formats.torch_export_format import TorchRuntime
from fbnetv3.deploy.predictor_loading import load
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor, Prediction
from fbnetv3.deploy.predictors.detector_predictor import Detection, DetectorPredictor

__all__ = [
    "FORMATS",
    "ClassifierPredictor",
    "Detection",
    "DetectorPredictor",
    "ExportFormat",
    "ExportedNetwork",
    "PrecisionSettings",
    "Manifest",
    "Prediction",
    "Runtime",
    "TorchRuntime",
    "export_classifier",
    "load",
]
