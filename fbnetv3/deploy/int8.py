"""Post-training quantisation of an ONNX file: 8-bit weights, a scale a channel, and 8-bit maps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fbnetv3.deploy.formats import INPUT, needed, silent
from fbnetv3.deploy.images import AnyInput
from fbnetv3.errors import ExportError, UsageError


@dataclass(frozen=True)
class Int8:
    """How to quantise, and how to judge it.

    Attributes:
        calibration: images that show in which range each map's values lie; a few hundred.
        images, targets: others to count top-1 on, and the number of each one's class.
        max_drop: points of top-1 that may be lost.
    """

    calibration: Sequence[AnyInput]
    images: Sequence[AnyInput]
    targets: Sequence[int]
    max_drop: float = 1.0

    def __post_init__(self) -> None:
        if not self.calibration or not self.images or len(self.images) != len(self.targets):
            raise UsageError("int8 needs images to calibrate on, and others with a target each")

    def top1(self, logits: np.ndarray) -> float:
        """Top-1 in per cent of logits (N, classes) for `images`."""
        return 100 * float((logits.argmax(1) == np.asarray(self.targets)).mean())


def quantize_onnx(path: Path, batches: Iterable[np.ndarray]) -> None:
    """Put in a file's place its quantised form.

    Args:
        path: the ONNX file.
        batches: inputs to calibrate on, float32 (N, channels, H, W).

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ExportError: it cannot be quantised.
    """
    with needed("onnxruntime"):
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        remaining = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.remaining, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory() as folder, silent():
        inferred = Path(folder) / "inferred.onnx"
        try:
            quant_pre_process(str(path), str(inferred), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(inferred), str(path), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True
            )
        except OSError:
            raise
        except Exception as error:
            raise ExportError(f"ONNX Runtime cannot quantise this network: {str(error)[:300]}") from error
