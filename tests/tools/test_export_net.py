"""tools/export_net.py and tools/classify.py, one after the other."""

import json

import numpy as np
from PIL import Image

from fbnetv3.data import build_dataset
from tests.test_docs import ROOT

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
    assert title.split() == ["on", "360", "images", "top-1", "agreement", "size", "of", "float32"]
    assert before.split()[:3] == ["float32", f"{noted['top1_float32']:.2f}", "%"] and noted["top1_float32"] > 99
    agreement = f"{noted['agreement']:.2f}"
    assert after.split()[:5] == ["int8", f"{noted['top1_int8']:.2f}", "%", agreement, "%"] and noted["top1_int8"] > 98
    assert after.split()[-2] == f"{100 * noted['bytes_int8'] / noted['bytes_float32']:.1f}"


def test_int8_by_a_folder_of_images(tool, tmp_path):
    data = build_dataset("digits", "", "train")
    (tmp_path / "mine").mkdir()
    for i in range(60):
        data[i][0].save(tmp_path / "mine" / f"{i}.png")
    folder = ("--format", "onnx", "--int8", "--calibration", tmp_path / "mine", "--output")
    ran = tool("export_net", *MODEL, *folder, tmp_path / "labelled")
    noted = json.loads((tmp_path / "labelled" / "manifest.json").read_text())["verification"]["int8"]
    assert (noted["calibration_images"], noted["images"], ran.err) == (60, 360, "")
    assert noted["top1_int8"] > 98

    config = (tmp_path / "mine.yaml", tmp_path / "names.txt")
    base = ROOT / "configs/digits/fbnetv3_digits.yaml"
    config[0].write_text(f"_BASE_: {base}\nDATA: {{NAME: imagefolder, ROOT: {tmp_path}/nowhere}}\n")
    config[1].write_text("\n".join("abcdefghij"))
    own = ("--config", config[0], "--classes", config[1], "--weights", "published")
    ran = tool("export_net", *own, *folder, tmp_path / "unlabelled")
    assert ran.code == 0, ran.err
    assert ran.err.startswith("no labels, so agreement with float32 decides (") and "nowhere" in ran.err
    title, before, after = ran.out.splitlines()[1:]
    assert title.split() == ["on", "30", "images", "agreement", "size", "of", "float32"] and "MB" in before
    assert after.startswith("int8") and "100.00 %" in after
    noted = json.loads((tmp_path / "unlabelled" / "manifest.json").read_text())["verification"]["int8"]
    assert noted["min_agreement"] == 98 and "top1_int8" not in noted


def test_wrong_calls_are_one_line(tool, tmp_path):
    out = ("--output", tmp_path / "out")
    for name, arguments, code, message in (
        ("export_net", ["--format", "onnx", *out], 2, "one of the arguments --config --model is required"),
        ("export_net", [*MODEL, "--format", "tflite", *out], 2, "invalid choice: 'tflite'"),
        ("export_net", [*MODEL, "--format", "onnx", *out, "SEED", "1"], 2, "KEY VALUE pairs need --config"),
        ("export_net", [*MODEL, "--format", "onnx", *out, "--images", tmp_path / "no"], 1, "no such folder"),
        ("export_net", [*MODEL, "--format", "executorch", "--any-size", *out], 2, "inputs of one size"),
        ("export_net", [*MODEL, "--format", "torch-export", "--int8", *out], 2, "int8 is made for onnx and executorch"),
        ("export_net", [*MODEL, "--format", "onnx", "--calibration", tmp_path, *out], 2, "--calibration needs --int8"),
        ("export_net", [*MODEL, "--format", "onnx", "--reduce-range", *out], 2, "--reduce-range needs --int8"),
        (
            "export_net",
            [*MODEL, "--format", "onnx", "--int8", "--val-images", "0", *out],
            2,
            "--val-images 0: at least one",
        ),
        ("export_net", [*MODEL, "--format", "torch-export", "--output", "/proc/no/out"], 1, "cannot be written"),
        ("classify", [tmp_path, "x.png"], 1, "has no manifest.json: it is not an exported folder"),
        ("classify", ["digits/fbnetv3_digits", tmp_path / "x.png"], 1, "x.png: no such image"),
        ("classify", ["fbnetv3_aa", "x.png"], 2, "did you mean fbnetv3_a"),
    ):
        ran = tool(name, *arguments)
        assert (ran.code, ran.err.count("\n")) == (code, 1), ran.err
        assert message in ran.err
    assert not (tmp_path / "out").exists()
