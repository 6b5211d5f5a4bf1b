"""tools/export_net.py and tools/classify.py, one after the other."""

import json

import numpy as np
from PIL import Image

from fbnetv3.data import build_dataset

MODEL = ("--model", "digits/fbnetv3_digits")


def test_export_and_classify(tool, tmp_path):
    image, target = build_dataset("digits", "", "val")[0]
    image.save(tmp_path / "digit.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    ran = tool("export_net", *MODEL, "--format", "torch-export", "--output", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{tmp_path}/out/model.pt2: fbnetv3_digits, ") and "on 32 images" in ran.out
    command = json.loads((tmp_path / "out" / "manifest.json").read_text())["command"]
    assert command == f"export_net.py --model digits/fbnetv3_digits --format torch-export --output {tmp_path}/out"
    images = (tmp_path / "digit.png", tmp_path / "black.png")
    ours, theirs = (tool("classify", source, *images) for source in (tmp_path / "out", "digits/fbnetv3_digits"))
    assert ours == theirs and ours.code == 0
    lines = ours.out.splitlines()
    assert lines[0] == str(images[0]) and lines[6] == str(images[1]) and len(lines) == 12
    assert lines[1].split()[0] == str(target) and lines[1].endswith(" %")


def test_int8_prints_accuracy_before_and_after(tool, tmp_path):
    ran = tool("export_net", *MODEL, "--format", "onnx", "--int8", "--output", tmp_path / "out")
    assert ran.code == 0, ran.err
    noted = json.loads((tmp_path / "out" / "manifest.json").read_text())["verification"]["int8"]
    _, title, before, after = ran.out.splitlines()
    assert title.split() == ["on", "360", "images", "top-1", "size"]
    assert before.split()[:3] == ["float32", f"{noted['top1_float32']:.2f}", "%"] and noted["top1_float32"] > 99
    assert after.split()[:3] == ["int8", f"{noted['top1_int8']:.2f}", "%"] and noted["top1_int8"] > 98


def test_wrong_calls_are_one_line(tool, tmp_path):
    out = ("--output", tmp_path / "out")
    for name, arguments, code, message in (
        ("export_net", ["--format", "onnx", *out], 2, "one of the arguments --config --model is required"),
        ("export_net", [*MODEL, "--format", "tflite", *out], 2, "invalid choice: 'tflite'"),
        ("export_net", [*MODEL, "--format", "onnx", *out, "SEED", "1"], 2, "KEY VALUE pairs need --config"),
        ("export_net", [*MODEL, "--format", "onnx", *out, "--images", tmp_path / "no"], 1, "no such folder"),
        ("export_net", [*MODEL, "--format", "executorch", "--any-size", *out], 2, "inputs of one size"),
        ("export_net", [*MODEL, "--format", "executorch", "--int8", *out], 2, "int8 is made for onnx"),
        ("export_net", [*MODEL, "--format", "torch-export", "--output", "/proc/no/out"], 1, "cannot be written"),
        ("classify", [tmp_path, "x.png"], 1, "has no manifest.json: it is not an exported folder"),
        ("classify", ["digits/fbnetv3_digits", tmp_path / "x.png"], 1, "x.png: no such image"),
        ("classify", ["fbnetv3_aa", "x.png"], 2, "did you mean fbnetv3_a"),
    ):
        ran = tool(name, *arguments)
        assert (ran.code, ran.err.count("\n")) == (code, 1), ran.err
        assert message in ran.err
    assert not (tmp_path / "out").exists()
