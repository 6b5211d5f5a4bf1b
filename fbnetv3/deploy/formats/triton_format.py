"""Models for Triton Inference Server, folders of which are a model repository: an ONNX file with a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from fbnetv3.deploy.formats.onnx_format import OnnxFormat, OnnxRuntime
from fbnetv3.utils.files import atomic_write

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
_VERSION_FOLDER = "1"
_MAX_BATCH_SIZE = 16
_MAX_DELAY = 2000  # microseconds
_TYPES = {"float32": "TYPE_FP32"}


class TritonFormat(OnnxFormat):
    """`1/model.onnx` with `config.pbtxt` and `labels.txt`: a model for Triton, with dynamic batching."""

    @property
    def file_name(self) -> str:
        """Name of the model file: that of the model's first version."""
        return f"{_VERSION_FOLDER}/{super().file_name}"

    def write(self, program: ExportedProgram, path: Path) -> None:
        """Write the ONNX file into the folder of its version."""
        path.parent.mkdir(exist_ok=True)
        super().write(program, path)

    def add_files(self, folder: Path) -> None:
        """Write the configuration and the labels."""
        runtime = OnnxRuntime(folder / self.file_name)
        (model_input,), (output,) = runtime.describe_inputs(), runtime.describe_outputs()
        _write_text(folder / CONFIG_FILE, build_triton_config(model_input, output))
        classes = json.loads((folder / "classes.json").read_text())
        _write_text(folder / LABELS_FILE, "".join(f"{' '.join(name.split())}\n" for name in classes))


def build_triton_config(model_input: Mapping[str, Any], output: Mapping[str, Any]) -> str:
    """Return Triton's configuration of a classifier, as text of its protocol buffer `ModelConfig`.

    It has no name: Triton then takes that of the folder, which may be renamed.

    Args:
        model_input: "name", "type" and "shape" of the input, with None for the batch and other dynamic sizes.
        output: the same of the output.
    """
    return f"""\
platform: "onnxruntime_onnx"
max_batch_size: {_MAX_BATCH_SIZE}
dynamic_batching {{
  max_queue_delay_microseconds: {_MAX_DELAY}
}}
input [
  {{
{_describe_tensor(model_input)}
  }}
]
output [
  {{
{_describe_tensor(output)}
    label_filename: "{LABELS_FILE}"
  }}
]
"""


def _describe_tensor(value: Mapping[str, Any]) -> str:
    sizes = ", ".join(str(size or -1) for size in value["shape"][1:])  # without the batch
    return f"""\
    name: "{value["name"]}"
    data_type: {_TYPES[value["type"]]}
    dims: [ {sizes} ]"""


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
