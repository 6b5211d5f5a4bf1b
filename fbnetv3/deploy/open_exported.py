"""An exported folder, opened: a classifier's or a detector's, whatever the format."""

from __future__ import annotations

import os
from pathlib import Path

from fbnetv3.deploy.exported_folder import DETECTION, check_files, read_manifest
from fbnetv3.deploy.predictors.classifier_predictor import Predictor, open_folder
from fbnetv3.deploy.predictors.detector_predictor import DetectionPredictor, open_detector


def load(folder: str | os.PathLike) -> Predictor | DetectionPredictor:
    """The predictor of an exported folder, whatever its format, once every file's checksum is found right.

    A checksum tells damage, not malice: as any archive of torch.export, a .pt2 file may run code when it is opened.
    Load those only from people you trust; ONNX and ExecuTorch files hold none.

    Args:
        folder: what `tools/export_net.py`, `export_classifier` or `export_detector` has made.

    Returns:
        A `Predictor` for a classifier, a `DetectionPredictor` for a detector.

    Raises:
        ExportError: no exported folder, or a file is missing or damaged; the text names it.
        MissingPackageError: the format's runtime is not installed; the text says what to install.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if manifest.task == DETECTION:
        return open_detector(folder, manifest.network)
    return open_folder(folder, manifest.format, manifest.network)
