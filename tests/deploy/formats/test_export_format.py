"""A user's export format: one module outside the package, registered and used by name."""

import subprocess
import sys

import pytest

from fbnetv3.deploy import FORMATS
from fbnetv3.deploy.formats.export_format import get_format
from fbnetv3.errors import UnknownNameError
from tests.pages import ROOT

MODULE = '''
import torch

from fbnetv3.deploy import FORMATS, ExportFormat, TorchRuntime


@FORMATS.register(name="frozen")
class FrozenFormat(ExportFormat):
    """TorchScript with the weights as constants."""

    suffix = ".ts"

    def write(self, program, path):
        torch.jit.freeze(torch.jit.trace(program.module(), program.example_inputs[0][0]).eval()).save(str(path))

    def open(self, path, precision="float32"):
        return TorchRuntime(torch.jit.load(str(path)))
'''


def test_names():
    names = "aoti coreml executorch litert ncnn onnx openvino torch-export torchscript"
    assert set(names.split()) <= set(FORMATS.names())
    assert get_format("onnx").file_name == "model.onnx"
    with pytest.raises(UnknownNameError, match="unknown export format 'onxx': did you mean onnx?"):
        get_format("onxx")


def test_a_users_format(tmp_path):
    (tmp_path / "my_format.py").write_text(MODULE)

    def run(*command):
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path)

    source = ("--model", "digits/fbnetv3_digits", "--format", "frozen", "--output", "out")
    export = run(ROOT / "tools/export_net.py", "--import", "my_format", *source)
    assert export.returncode == 0, export.stderr
    assert "out/model.ts: fbnetv3_digits" in export.stdout
    script = "import my_format, numpy; from fbnetv3 import deploy; print(deploy.load('out')(numpy.zeros((8, 8), 'u1')))"
    loaded = run("-c", script)
    assert "Prediction(label=" in loaded.stdout, loaded.stderr
    measured = run(ROOT / "tools/measure_net.py", "--import", "my_format", "out", "--seconds", "0.05")
    assert measured.returncode == 0 and "torch 2" in measured.stdout, measured.stderr

    classify = run(ROOT / "tools/classify.py", "out", "x.png")
    assert classify.returncode == 1 and "unknown export format 'frozen'" in classify.stderr
    assert "; or import the module that registers it (--import)" in classify.stderr
