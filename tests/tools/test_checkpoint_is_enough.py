"""A checkpoint is all that evaluating, classifying, exporting and fine-tuning need; classes are matched by name."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fbnetv3.arch import configs_folder
from fbnetv3.deploy import load
from fbnetv3.model_zoo.pretrained import load_classifier_from_checkpoint

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
NAMES = {1: "one", 3: "three", 7: "seven"}
CLASSES = ["one", "seven", "three"]
SHORT = [
    "SOLVER.EPOCHS",
    "4",
    "SOLVER.WARMUP_EPOCHS",
    "1",
    "SOLVER.BATCH_SIZE",
    "16",
    "SOLVER.LR",
    "0.03",
    "MODEL.NUM_CLASSES",
    "0",
]
# A normalization and size that no config has
INPUT = [
    "INPUT.MEAN",
    "[0.3]",
    "INPUT.STD",
    "[0.4]",
    "INPUT.RESOLUTION",
    "28",
    "INPUT.RESIZE",
    "30",
    "INPUT.INTERPOLATION",
    "bicubic",
]


def write_images(folder, names, first, last):
    """Write a range of the digits into a folder per class; `names` maps digits to class names."""
    digits = load_digits()
    for i in range(first, last):
        if (digit := int(digits.target[i])) in names:
            path = folder / names[digit] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).save(path)


def make_data(root, train=NAMES, val=NAMES):
    write_images(root / "train", train, 0, 400)
    write_images(root / "val", val, 400, 500)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run on three digits, whose dataset has gone. It starts from a trained network."""
    from tests.tools.conftest import run_tool_once

    root = tmp_path_factory.mktemp("three")
    make_data(root / "data")
    ran = run_tool_once(
        "train_net", "--config", DIGITS, "DATA.NAME", "imagefolder", "DATA.ROOT", root / "data",
        "MODEL.WEIGHTS", "zoo://digits/fbnetv3_digits", "OUTPUT_DIR", root / "run", *SHORT, *INPUT,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert metrics(root / "run")["val_top1"] > 80
    shutil.rmtree(root / "data")
    return root / "run"


@pytest.fixture
def run(trained, tmp_path):
    """Return a copy of the run in another folder."""
    return shutil.copytree(trained, tmp_path / "moved")


def metrics(trained):
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if "val_top1" in line][-1]


def evaluate(tool, *arguments):
    return tool("train_net", "--eval-only", *arguments)


def test_what_a_checkpoint_holds(trained):
    saved = torch.load(trained / "model_final.pth", weights_only=True)
    assert saved["classes"] == CLASSES
    assert saved["preprocessing"]["resolution"] == 28 and saved["preprocessing"]["resize"] == 30
    assert tuple(saved["preprocessing"]["mean"]) == (0.3,)
    assert (
        saved["preprocessing"]["interpolation"] == "bicubic"
        and saved["preprocessing"]["channels"] == "gray"
    )
    assert "stages:" in saved["definition"] and saved["in_chans"] == 1
    assert saved["run_config"]["SOLVER.LR"] == 0.03 and saved["run_config"]["SOLVER.EPOCHS"] == 4
    assert saved["metrics"]["val_top1"] == metrics(trained)["val_top1"]
    assert saved["data"]["train"]["images"] == sum(1 for d in load_digits().target[:400] if d in NAMES)
    assert saved["versions"]["torch"] == torch.__version__
    newest = sorted((trained / "checkpoints").iterdir())[-1]
    assert torch.load(newest, weights_only=True)["metadata"]["classes"] == CLASSES


def test_evaluation_needs_nothing_else(tool, trained, run, tmp_path):
    """Not even the config: the data have moved, and so has the run."""
    data = make_data(tmp_path / "elsewhere")
    expected = f"top1 {metrics(trained)['val_top1']:.2f}%, loss {metrics(trained)['val_loss']:.4f}"
    ways = {
        "no config": ["MODEL.WEIGHTS", run / "model_final.pth"],
        "a folder": ["OUTPUT_DIR", run],
        "the run's config": ["--config", run / "config.yaml"],
        "a checkpoint": ["MODEL.WEIGHTS", sorted((run / "checkpoints").iterdir())[-1]],
        "another config": [
            "--config",
            DIGITS,
            "DATA.NAME",
            "imagefolder",
            "MODEL.WEIGHTS",
            run / "model_best.pth",
        ],
    }
    for way, arguments in ways.items():
        ran = evaluate(tool, *arguments, "DATA.ROOT", data)
        assert (ran.code, ran.err) == (0, ""), way
        if way == "another config":  # whose values the checkpoint's replace
            assert "INPUT.MEAN [0.3]" in ran.out and "the config has [0.5]" in ran.out
        else:
            assert expected in ran.out, way


def test_what_is_given_wins_and_is_said(tool, run, tmp_path):
    data = make_data(tmp_path / "data")
    weights = run / "model_final.pth"
    ran = evaluate(tool, "MODEL.WEIGHTS", weights, "DATA.ROOT", data, "INPUT.MEAN", "[0.9]")
    assert f"INPUT.MEAN [0.9], as given: {weights} was trained with [0.3]" in ran.out
    plain = evaluate(tool, "MODEL.WEIGHTS", weights, "DATA.ROOT", data)
    assert ran.out.splitlines()[-1] != plain.out.splitlines()[-1]


def subset_file(root, classes, path):
    """Write a subset of a folder's validation images that lists its classes in this order."""
    images = [
        file.relative_to(root / "val").as_posix()
        for name in classes
        for file in sorted((root / "val" / name).iterdir())
    ]
    path.write_text(
        json.dumps(
            {"root": str(root / "val"), "classes": classes, "train": images, "val": images, "seed": 0}
        )
    )
    return path


def test_another_order_of_the_classes(tool, trained, run, tmp_path):
    file = subset_file(make_data(tmp_path / "data"), ["three", "one", "seven"], tmp_path / "subset.json")
    data = ["DATA.NAME", "imagelist", "DATA.ROOT", file]
    ran = evaluate(tool, "MODEL.WEIGHTS", run / "model_final.pth", *data)
    assert f"top1 {metrics(trained)['val_top1']:.2f}%" in ran.out
    assert "in another order" in ran.out


def test_a_subset_of_the_classes(tool, run, tmp_path):
    """The accuracies of single classes, weighted by their images, are that of all."""
    data = make_data(tmp_path / "data")
    weights = run / "model_final.pth"
    correct = 0.0
    for name in CLASSES:
        part = tmp_path / name
        shutil.copytree(data / "val" / name, part / "val" / name)
        ran = evaluate(tool, "MODEL.WEIGHTS", weights, "DATA.ROOT", part)
        assert "has 1 of the 3 classes" in ran.out
        percent = float(ran.out.splitlines()[-1].split("%")[0].removeprefix("top1 "))
        correct += percent / 100 * len(list((part / "val" / name).iterdir()))
    images = len(list((data / "val").rglob("*.png")))
    assert correct / images * 100 == pytest.approx(metrics(run)["val_top1"], abs=0.02)


RENAMED = {"renamed": {1: "uno", 3: "three", 7: "seven"}, "more": {**NAMES, 9: "nine"}}
# The same number of classes, and two of their names have moved to other digits
SWAPPED = {1: "seven", 3: "three", 7: "zero"}


@pytest.mark.parametrize("names", [*RENAMED.values(), SWAPPED], ids=[*RENAMED, "swapped"])
@pytest.mark.parametrize("way", ["evaluate", "run's config", "resume"])
def test_unknown_classes_are_refused_with_both_lists(tool, run, tmp_path, names, way):
    data = ["DATA.ROOT", make_data(tmp_path / "data", names, names)]
    if way == "evaluate":
        ran = evaluate(tool, "MODEL.WEIGHTS", run / "model_final.pth", *data)
    elif way == "run's config":
        ran = evaluate(tool, "--config", run / "config.yaml", *data)
    else:
        more = ["SOLVER.EPOCHS", "5"]
        ran = tool("train_net", "--config", run / "config.yaml", "--resume", *more, *data)
    assert ran.code == 2 and len(ran.err.splitlines()) == 1
    assert f"({', '.join(sorted(names.values()))})" in ran.err and f"({', '.join(CLASSES)})" in ran.err


def test_a_run_resumes_with_its_data_elsewhere(tool, run, tmp_path):
    data = make_data(tmp_path / "data")
    resume = ["--config", run / "config.yaml", "--resume", "SOLVER.EPOCHS", "5"]
    ran = tool("train_net", *resume, "DATA.ROOT", data)
    assert ran.code == 0 and "(4 epochs)" in ran.out and str(run) in ran.out
    assert "not those of the checkpoint" not in ran.out


def test_resuming_with_other_images_is_said(tool, run, tmp_path):
    data = make_data(tmp_path / "data")
    first = next((data / "val" / "one").iterdir())
    first.rename(first.with_name("renamed.png"))
    resume = ["--config", run / "config.yaml", "--resume", "SOLVER.EPOCHS", "5"]
    ran = tool("train_net", *resume, "DATA.ROOT", data)
    assert (
        ran.code == 0
        and "the val images, or their classes, are not those of the checkpoint: 33 in" in ran.out
    )


def test_a_validation_split_without_a_class(tool, config, folder):
    shutil.rmtree(folder / "val" / "dark")
    ran = tool("train_net", "--config", config)
    assert ran.code == 0
    assert "the validation split has 1 of the 2 classes of the training split" in ran.out


def test_fine_tuning_keeps_the_rows_of_known_classes(tool, run, tmp_path):
    names = {1: "one", 9: "nine", 7: "seven"}
    data = make_data(tmp_path / "data", names, names)
    ran = tool(
        "train_net", "--config", DIGITS, "DATA.NAME", "imagefolder", "DATA.ROOT", data, "MODEL.WEIGHTS",
        run / "model_final.pth", "MODEL.ARCH", "", "INPUT.MEAN", "[]", "INPUT.STD", "[]", "INPUT.INTERPOLATION", "",
        "OUTPUT_DIR", tmp_path / "tuned", *SHORT, "SOLVER.LR", "0",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "the head has 2 of 3 classes from the weights, matched by name; new: nine" in ran.out
    tuned = torch.load(tmp_path / "tuned" / "model_final.pth", weights_only=True)
    start = torch.load(run / "model_final.pth", weights_only=True)
    assert tuned["classes"] == ["nine", "one", "seven"]
    assert tuple(tuned["preprocessing"]["mean"]) == (0.3,)
    assert tuned["preprocessing"]["interpolation"] == "bicubic"
    # The learning rate is 0
    assert torch.equal(tuned["model"]["head.weight"][1:], start["model"]["head.weight"][:2])


def test_the_result_of_a_run_is_evaluated_not_its_start(tool, run, tmp_path):
    """Its config.yaml names the weights that it started from."""
    data = make_data(tmp_path / "data")
    tuned = tmp_path / "tuned"
    tool(
        "train_net", "--config", DIGITS, "DATA.NAME", "imagefolder", "DATA.ROOT", data,
        "MODEL.WEIGHTS", run / "model_final.pth", "OUTPUT_DIR", tuned, *SHORT, "SOLVER.LR", "0.2",
    )  # fmt: skip
    expected = f"top1 {metrics(tuned)['val_top1']:.2f}%, loss {metrics(tuned)['val_loss']:.4f}"
    moved = shutil.move(tuned, tmp_path / "moved_away")
    ran = evaluate(tool, "--config", f"{moved}/config.yaml")
    assert expected in ran.out and "the result of the run that started from" in ran.out
    start = evaluate(tool, "--config", f"{moved}/config.yaml", "MODEL.WEIGHTS", run / "model_final.pth")
    assert f"top1 {metrics(run)['val_top1']:.2f}%" in start.out
    # The same weights are classified with and exported
    image = next((data / "val" / "seven").iterdir())
    by_config = tool("classify", f"{moved}/config.yaml", image)
    by_weights = tool("classify", f"{moved}/model_final.pth", image)
    assert by_config.code == 0
    assert by_config.out.splitlines()[-3:] == by_weights.out.splitlines()[-3:]
    exported = [tmp_path / "a", tmp_path / "b"]
    tool("export_net", "--config", f"{moved}/config.yaml", "--format", "onnx", "--output", exported[0])
    tool("export_net", "--model", f"{moved}/model_final.pth", "--format", "onnx", "--output", exported[1])
    logits = [load(folder).logits(image) for folder in exported]
    assert np.array_equal(*logits)
    network = load_classifier_from_checkpoint(f"{moved}/model_final.pth")
    with torch.no_grad():
        expected_logits = network.model(network.preprocessing.transform()(Image.open(image))[None])
    np.testing.assert_allclose(logits[0], expected_logits.numpy(), rtol=1e-4, atol=1e-5)


def test_classifying_and_exporting_need_nothing_else(tool, run, tmp_path):
    write_images(tmp_path, {7: "photos"}, 400, 420)
    image = next((tmp_path / "photos").iterdir())
    for model in (run / "model_final.pth", run, run / "config.yaml"):
        ran = tool("classify", model, image, "--top", "3")
        assert ran.code == 0, ran.err
        assert next(line.split()[0] for line in ran.out.splitlines()[-3:]) == "seven"
    ran = tool("export_net", "--model", run, "--format", "onnx", "--output", tmp_path / "exported")
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "exported" / "classes.json").read_text()) == CLASSES
    assert json.loads((tmp_path / "exported" / "preprocessing.json").read_text())["mean"] == [0.3]


def test_class_names_from_a_file_win_and_are_said(tool, run, tmp_path):
    (tmp_path / "names.txt").write_text("eins\nsieben\ndrei\n")
    write_images(tmp_path, {7: "photos"}, 400, 420)
    image = next((tmp_path / "photos").iterdir())
    ran = tool("classify", run, image, "--classes", tmp_path / "names.txt")
    assert "as given; the weights have one, seven, three" in ran.out and "sieben" in ran.out


def test_int8_is_judged_on_classes_matched_by_name(tool, run, tmp_path):
    """The dataset lists its classes in another order; its training images are its validation images."""
    file = subset_file(make_data(tmp_path / "data"), ["three", "seven", "one"], tmp_path / "subset.json")
    ran = tool(
        "export_net", "--config", run / "config.yaml", "--format", "onnx", "--int8", "--output", tmp_path / "int8",
        "--calibration", tmp_path / "data" / "train", "DATA.NAME", "imagelist", "DATA.ROOT", file,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    verification = json.loads((tmp_path / "int8" / "manifest.json").read_text())["verification"]["int8"]
    assert verification["top1_float32"] == pytest.approx(metrics(run)["val_top1"], abs=0.01)


def test_a_foreign_checkpoint_says_what_it_lacks(tool, tmp_path):
    torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "x.pth")
    ran = tool("classify", tmp_path / "x.pth", tmp_path / "a.png")
    assert ran.code == 2 and "does not record its network" in ran.err
    ran = evaluate(tool, "MODEL.WEIGHTS", tmp_path / "x.pth")
    assert ran.code == 2 and "does not record a config: pass --config FILE" in ran.err


def test_a_checkpoint_of_version_1(tool, run, tmp_path):
    """It has no class names; its preprocessing is in its config."""
    saved = torch.load(run / "model_final.pth", weights_only=True)
    for key in ("classes", "preprocessing", "run_config", "data", "versions"):
        del saved[key]
    torch.save(saved, tmp_path / "old.pth")
    data = make_data(tmp_path / "data")
    ran = evaluate(tool, "MODEL.WEIGHTS", tmp_path / "old.pth", "DATA.ROOT", data)
    assert f"top1 {metrics(run)['val_top1']:.2f}%" in ran.out


def test_several_labels_per_image_stay_independent(tool, tmp_path):
    """In prediction and in the export: probabilities are sigmoids, not shares of one."""
    digits = load_digits()
    folder = tmp_path / "data"
    for split, first, last in (("train", 0, 60), ("val", 60, 80)):
        (folder / split).mkdir(parents=True)
        rows = ["file,labels"]
        for i in range(first, last):
            Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).save(folder / split / f"{i}.png")
            digit = int(digits.target[i])
            labels = ["even"] * (digit % 2 == 0) + ["small"] * (digit < 5)
            rows.append(f"{split}/{i}.png,{'|'.join(labels)}")
        (folder / f"{split}.csv").write_text("\n".join(rows))
    run = tmp_path / "run"
    ran = tool(
        "train_net", "--config", DIGITS, "DATA.NAME", "csv", "DATA.ROOT", folder, "OUTPUT_DIR", run, *SHORT,
        "SOLVER.LOSS", "binary_cross_entropy", "INPUT.FLIP", "False",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    image = folder / "val" / "60.png"
    network = load_classifier_from_checkpoint(run)
    with torch.no_grad():
        logits = network.model(network.preprocessing.transform()(Image.open(image))[None])[0]
    expected = dict(zip(network.classes, logits.double().sigmoid().tolist(), strict=True))
    tool("export_net", "--model", run, "--format", "onnx", "--output", tmp_path / "exported")
    manifest = json.loads((tmp_path / "exported" / "manifest.json").read_text())
    assert manifest["output"]["activation"] == "sigmoid"
    for model in (run, tmp_path / "exported"):
        ran = tool("classify", model, image, "--json", tmp_path / "p.json")
        assert ran.code == 0, ran.err
        [item] = json.loads((tmp_path / "p.json").read_text())
        probabilities = {p["label"]: p["probability"] for p in item["predictions"]}
        assert probabilities == pytest.approx(expected, abs=1e-4)
    # Networks for one class per image are not evaluated on them
    single = make_data(tmp_path / "single", {2: "even", 3: "small"}, {2: "even", 3: "small"})
    ran = evaluate(
        tool, "MODEL.WEIGHTS", run / "model_final.pth", "DATA.NAME", "imagefolder", "DATA.ROOT", single
    )
    assert (
        ran.code == 2
        and "was trained on images with several labels, but imagefolder has one class" in ran.err
    )


def list_file(root, classes, path):
    """Write a subset of a folder that lists its classes in this order, its images always in the same order."""
    images = {
        split: [file.relative_to(root).as_posix() for file in sorted(root.glob(f"{split}/*/*.png"))]
        for split in ("train", "val")
    }
    # The class of an image is the first folder of its path
    for split, paths in images.items():
        for name in NAMES.values():
            (root / name).mkdir(exist_ok=True)
        for file in paths:
            (root / file).rename(root / file.removeprefix(f"{split}/"))
        images[split] = [file.removeprefix(f"{split}/") for file in paths]
    path.write_text(json.dumps({"root": str(root), "classes": classes, **images, "seed": 0}))
    return path


def test_a_resumed_run_keeps_its_order_of_the_classes(tool, tmp_path):
    """It ends with the same weights, bit for bit, although the dataset lists its classes in another order."""
    file = list_file(make_data(tmp_path / "data"), CLASSES, tmp_path / "subset.json")
    arguments = ["--config", DIGITS, "DATA.NAME", "imagelist", "DATA.ROOT", file, *SHORT]
    tool("train_net", *arguments, "OUTPUT_DIR", tmp_path / "whole")
    tool("train_net", *arguments, "OUTPUT_DIR", tmp_path / "cut")
    for later in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        later.unlink()
    (tmp_path / "cut" / "model_final.pth").unlink()
    subset = json.loads(file.read_text())
    file.write_text(json.dumps({**subset, "classes": ["three", "one", "seven"]}))
    ran = tool("train_net", *arguments, "OUTPUT_DIR", tmp_path / "cut", "--resume")
    assert ran.code == 0 and "the training split has its classes in another order" in ran.out
    whole, cut = (torch.load(tmp_path / run / "model_final.pth") for run in ("whole", "cut"))
    assert cut["classes"] == CLASSES
    assert all(torch.equal(value, cut["model"][key]) for key, value in whole["model"].items())


def test_a_resumed_run_with_fewer_classes_says_which_are_gone(tool, run, tmp_path):
    data = make_data(tmp_path / "data", {1: "one", 7: "seven"})
    ran = tool(
        "train_net", "--config", run / "config.yaml", "--resume", "SOLVER.EPOCHS", "5", "DATA.ROOT", data
    )
    assert (
        ran.code == 2
        and "has 2 of the 3 classes of the checkpoint, matched by name; it lacks three" in ran.out
    )
    assert "steps_per_epoch has changed" in ran.err


@pytest.mark.parametrize("names", [*RENAMED.values(), SWAPPED], ids=[*RENAMED, "swapped"])
def test_int8_is_not_judged_on_unknown_classes(tool, run, tmp_path, names):
    data = make_data(tmp_path / "data", names, names)
    ran = tool(
        "export_net", "--config", run / "config.yaml", "--format", "onnx", "--int8", "--output", tmp_path / "int8",
        "DATA.ROOT", data,
    )  # fmt: skip
    assert ran.code == 2 and not (tmp_path / "int8").exists()
    assert f"({', '.join(sorted(names.values()))})" in ran.err and f"({', '.join(CLASSES)})" in ran.err


@pytest.mark.parametrize(
    "names, kept", [({3: "three", 1: "one"}, 2), (SWAPPED, 2), ({1: "uno", 3: "tres"}, 0), (NAMES, 3)]
)
def test_fine_tuning_on_any_classes_says_what_it_keeps(tool, run, tmp_path, names, kept):
    data = make_data(tmp_path / "data", names, names)
    ran = tool(
        "train_net", "--config", "configs/finetune/checkpoint.yaml", "DATA.ROOT", data, "DATA.WORKERS", "0",
        "MODEL.WEIGHTS", run / "model_final.pth", "OUTPUT_DIR", tmp_path / "tuned", "SOLVER.EPOCHS", "1",
        "SOLVER.BATCH_SIZE", "16", "SOLVER.WARMUP_EPOCHS", "0",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    said = {
        0: "the weights have other classes than the dataset: the head starts from random values",
        2: "the head has all 2 classes" if len(names) == 2 else "the head has 2 of 3 classes",
        3: "",
    }[kept]
    assert said in ran.out and ("the head" in ran.out) == (kept < 3)
    tuned = torch.load(tmp_path / "tuned" / "model_final.pth")
    assert tuned["classes"] == sorted(names.values())
    assert tuple(tuned["preprocessing"]["mean"]) == (0.3,) and tuned["arch"] == "fbnetv3_digits"


def test_evaluating_other_images_leaves_the_report_of_the_run(tool, run, tmp_path):
    data = make_data(tmp_path / "data")
    evaluate(tool, "--config", run / "config.yaml", "DATA.ROOT", data)
    summary = (run / "evaluation" / "summary.json").read_text()
    assert json.loads(summary)["data"] == str(data)
    next((data / "val" / "one").iterdir()).unlink()
    ran = evaluate(tool, "--config", run / "config.yaml", "DATA.ROOT", data)
    assert "these are other validation images than those of the training run, which had 33" in ran.out
    assert "no report: these images" in ran.out
    assert (run / "evaluation" / "summary.json").read_text() == summary


def test_weights_without_class_names_say_what_they_are_taken_for(tool, run, tmp_path):
    saved = torch.load(run / "model_final.pth", weights_only=True)
    del saved["classes"]
    weights = tmp_path / "nameless.pth"
    torch.save(saved, weights)
    data = make_data(tmp_path / "data")
    said = f"{weights} does not record its classes: its outputs are taken to be one, seven, three, in this order"
    ran = evaluate(tool, "MODEL.WEIGHTS", weights, "DATA.ROOT", data)
    assert ran.code == 0 and said in ran.out
    (tmp_path / "names.txt").write_text("one\nseven\nthree\n")
    image = next((data / "val" / "one").iterdir())
    ran = tool("classify", weights, image, "--classes", tmp_path / "names.txt")
    assert ran.code == 0 and said in ran.out
    ran = tool("classify", run, image)
    assert "does not record" not in ran.out


def test_class_names_that_do_not_fit_the_outputs(tool, run, tmp_path):
    saved = torch.load(run / "model_final.pth", weights_only=True)
    image = tmp_path / "a.png"
    torch.save({**saved, "classes": ["one", "one", "three"]}, tmp_path / "repeated.pth")
    Image.new("L", (8, 8), 200).save(image)
    ran = tool("classify", tmp_path / "repeated.pth", image)
    assert ran.code == 0 and "the weights: several classes have the name one" in ran.out
    torch.save({**saved, "classes": ["one", "three"]}, tmp_path / "short.pth")
    ran = tool("classify", tmp_path / "short.pth", image)
    assert ran.code == 1 and "2 class names for 3 outputs" in ran.err


def test_resuming_with_relabeled_images_says_how_many(tool, run, tmp_path):
    """Each class is listed with its number of images; the files themselves are the same."""
    data = make_data(tmp_path / "data")
    resume = ["--config", run / "config.yaml", "--resume", "DATA.ROOT", data]
    wrong = min((data / "train" / "one").iterdir())
    wrong.rename(data / "train" / "seven" / wrong.name)
    ran = tool("train_net", *resume, "SOLVER.EPOCHS", "5")
    assert ran.code == 0
    assert "the train images, or their classes, are not those of the checkpoint: 122 in" in ran.out
    assert "122 in the checkpoint; images by class: one 41 -> 40, seven 39 -> 40" in ran.out


def test_a_single_class_is_not_trained(tool, tmp_path):
    """Every network would be right, as with a folder too many between train/ and the classes."""
    data = make_data(tmp_path / "data", {1: "one"}, {1: "one"})
    ran = tool(
        "train_net", "--config", DIGITS, "DATA.NAME", "imagefolder", "DATA.ROOT", data, *SHORT, "OUTPUT_DIR",
        tmp_path / "run",
    )  # fmt: skip
    assert ran.code == 1 and ran.err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert f"{data}: has only one class, one; training needs at least 2" in ran.err


@pytest.mark.parametrize("name", ["imagefolder", "csv", "shards"])
def test_an_archive_is_no_folder(tool, tmp_path, name):
    archive = shutil.make_archive(tmp_path / "data", "zip", make_data(tmp_path / "data"))
    ran = tool("train_net", "--config", DIGITS, "DATA.NAME", name, "DATA.ROOT", archive, *SHORT)
    assert ran.code == 1 and f"{archive}: is a file, but DATA.ROOT must be the folder" in ran.err
