"""tools/export_net.py, and tools/classify.py on what it has exported."""

import json

import numpy as np
import pytest
from PIL import Image

from fbnetv3.data import build_dataset
from tests.pages import ROOT

MODEL = ("--model", "digits/fbnetv3_digits")


def read_verification(folder):
    return json.loads((folder / "manifest.json").read_text())["verification"]


def test_export_and_classify(tool, tmp_path):
    image, target = build_dataset("digits", "", "val")[0]
    image.save(tmp_path / "digit.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    ran = tool("export_net", *MODEL, "--format", "torch-export", "--output", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{tmp_path}/out/model.pt2: fbnetv3_digits, ") and "on 32 images" in ran.out
    command = json.loads((tmp_path / "out" / "manifest.json").read_text())["command"]
    assert (
        command
        == f"export_net.py --model digits/fbnetv3_digits --format torch-export --output {tmp_path}/out"
    )
    images = (tmp_path / "digit.png", tmp_path / "black.png")
    exported, original = (
        tool("classify", model, *images) for model in (tmp_path / "out", "digits/fbnetv3_digits")
    )
    assert exported == original and exported.code == 0
    refused = tool("classify", tmp_path / "out", images[0], "--weights", "x.pth")
    assert refused.code == 2 and "already contains its weights and class names" in refused.err
    lines = exported.out.splitlines()
    assert lines[0] == str(images[0]) and lines[6] == str(images[1]) and len(lines) == 12
    assert lines[1].split()[0] == str(target) and lines[1].endswith("%")


def test_int8_prints_accuracy_before_and_after(tool, tmp_path):
    ran = tool("export_net", *MODEL, "--format", "onnx", "--int8", "--output", tmp_path / "out")
    assert ran.code == 0, ran.err
    result = read_verification(tmp_path / "out")["int8"]
    _, title, before, after = ran.out.splitlines()
    assert title.split() == ["on", "360", "images", "top-1", "agreement", "size", "of", "float32"]
    assert (
        before.split()[:2] == ["float32", f"{result['top1_float32']:.2f}%"] and result["top1_float32"] > 99
    )
    agreement = f"{result['agreement']:.2f}%"
    assert (
        after.split()[:3] == ["int8", f"{result['top1_int8']:.2f}%", agreement] and result["top1_int8"] > 98
    )
    assert after.split()[-1] == f"{100 * result['bytes_int8'] / result['bytes_float32']:.1f}%"


@pytest.fixture
def calibration(tmp_path):
    """A folder of 60 training digits."""
    folder = tmp_path / "digits"
    folder.mkdir()
    dataset = build_dataset("digits", "", "train")
    for i in range(60):
        dataset[i][0].save(folder / f"{i}.png")
    return folder


def test_int8_calibrated_on_a_folder_and_judged_by_labels(calibration, tool, tmp_path):
    options = ("--format", "onnx", "--int8", "--calibration", calibration, "--output", tmp_path / "out")
    ran = tool("export_net", *MODEL, *options, "--float-layers", "head,backbone.stages.0.0.0")
    result = read_verification(tmp_path / "out")["int8"]
    assert (result["calibration_images"], result["images"], ran.err) == (60, 360, "")
    assert result["float_layers"] == ["head", "backbone.stages.0.0.0"]
    assert result["top1_int8"] > 98


def test_int8_judged_by_agreement_without_labels(calibration, tool, tmp_path):
    config, names = tmp_path / "own.yaml", tmp_path / "names.txt"
    base = ROOT / "configs/digits/fbnetv3_digits.yaml"
    config.write_text(f"_BASE_: {base}\nDATA: {{NAME: imagefolder, ROOT: {tmp_path}/nowhere}}\n")
    names.write_text("\n".join("abcdefghij"))
    options = ("--format", "onnx", "--int8", "--calibration", calibration, "--output", tmp_path / "out")
    ran = tool("export_net", "--config", config, "--classes", names, "--weights", "published", *options)
    assert ran.code == 0, ran.err
    assert (
        ran.err.startswith("without labels, int8 is judged by agreement with float32 (")
        and "nowhere" in ran.err
    )
    title, before, after = ran.out.splitlines()[-3:]
    assert title.split() == ["on", "30", "images", "agreement", "size", "of", "float32"] and "MB" in before
    # All of 30 images: Wilson's interval begins at 30 / (30 + 1.96^2)
    assert after.startswith("int8") and "100.00% (≥ 88.65%)" in after
    assert "compared on only 30 images" in ran.out and "calibrated on only 30 images" in ran.out
    result = read_verification(tmp_path / "out")["int8"]
    assert result["min_agreement"] == 98 and "top1_int8" not in result


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--format", "onnx"], 2, "one of the arguments --config --model is required"),
        ([*MODEL, "--format", "tflite"], 2, "unknown export format 'tflite'"),
        ([*MODEL, "--format", "onnx", "SEED", "1"], 2, "KEY VALUE pairs need --config"),
        ([*MODEL, "--format", "onnx", "--images", "/nowhere"], 1, "no such folder"),
        (
            [*MODEL, "--format", "executorch", "--any-size"],
            2,
            "any_size is available for ",
        ),
        ([*MODEL, "--format", "torch-export", "--int8"], 2, "int8 is available for "),
        ([*MODEL, "--format", "onnx", "--calibration", "x"], 2, "--calibration needs --int8"),
        ([*MODEL, "--format", "onnx", "--reduce-range"], 2, "--reduce-range needs --int8"),
        ([*MODEL, "--format", "onnx", "--float-layers", "2"], 2, "--float-layers needs --int8"),
        ([*MODEL, "--format", "onnx", "--val-images", "1000"], 2, "--val-images needs --int8"),
        ([*MODEL, "--format", "onnx", "--max-drop", "1"], 2, "--max-drop needs --int8"),
        ([*MODEL, "--format", "onnx", "--min-agreement", "90"], 2, "--min-agreement needs --int8"),
        (
            [*MODEL, "--format", "onnx", "--int8", "--val-images", "0"],
            2,
            "--val-images: 0 must be at least 1",
        ),
    ],
)
def test_wrong_calls_are_one_line(arguments, code, message, tool, tmp_path):
    ran = tool("export_net", *arguments, "--output", tmp_path / "out")
    assert (ran.code, ran.err.count("\n")) == (code, 1), ran.err
    assert message in ran.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tool):
    ran = tool("export_net", *MODEL, "--format", "torch-export", "--output", "/proc/no/out")
    assert (ran.code, ran.err.count("\n")) == (1, 1) and "cannot be written" in ran.err


@pytest.mark.parametrize(
    "model, image, code, message",
    [
        (".", "x.png", 2, "contains neither an exported network nor the weights of a training run"),
        ("digits/fbnetv3_digits", "/nowhere/x.png", 1, "x.png: no such file"),
        ("fbnetv3_aa", "x.png", 2, "did you mean fbnetv3_a"),
    ],
)
def test_wrong_calls_of_classify_are_one_line(model, image, code, message, tool):
    ran = tool("classify", model, image)
    assert (ran.code, ran.err.count("\n")) == (code, 1), ran.err
    assert message in ran.err


def test_all_formats(tool, tmp_path, monkeypatch):
    """int8 is calibrated for each format; here, for one."""
    monkeypatch.setattr("fbnetv3.commands.export.FORMATS.names", lambda: ["onnx"])
    ran = tool("export_net", *MODEL, "--format", "all", "--val-images", "200", "--output", tmp_path / "all")
    assert ran.code == 0, ran.err
    header, float32, int8 = ran.out.splitlines()[-3:]
    assert header.split()[:3] == ["format", "precision", "size"]
    assert float32.split()[:2] == ["onnx", "float32"] and int8.split()[:2] == ["onnx", "int8"]
    assert int8.split()[-2] == "100.00%"  # agreement, before ms
    assert (tmp_path / "all" / "onnx_int8" / "model.onnx").exists()
    assert "onnx_int8: 0." in ran.err
