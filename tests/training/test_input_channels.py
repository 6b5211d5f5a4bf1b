"""Training, predicting and exporting with alpha, pages of TIFF files and arrays; the last channel has the class."""

import csv

import numpy as np
import pytest
from PIL import Image

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.deploy import ClassifierPredictor, TorchRuntime, export_classifier, load
from fbnetv3.deploy.input_sources import InputImage
from fbnetv3.deploy.predictors.file_predictions import ImagePredictions, PictureWriter
from fbnetv3.errors import DataError, UsageError
from fbnetv3.model_zoo.pretrained import load_classifier_from_checkpoint
from fbnetv3.training import train_classifier

CONFIG = configs_folder() / "finetune" / "fbnetv3_digits.yaml"
COUNTS = {"train": 24, "val": 6}  # images per class


def write_alpha(path, pixels):
    Image.fromarray(pixels).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def write_pages(path, pixels):
    first, *others = (Image.fromarray(pixels[:, :, i]) for i in range(pixels.shape[2]))
    first.save(path.with_suffix(".tif"), save_all=True, append_images=others)
    return path.with_suffix(".tif")


def write_array(path, pixels):
    np.save(path.with_suffix(".npy"), pixels)
    return path.with_suffix(".npy")


KINDS = {"alpha": (write_alpha, 4), "pages": (write_pages, 5), "arrays": (write_array, 5)}


def make_dataset(folder, kind):
    """Write noise of two classes that differ only in the last channel; return overrides, and files with their class."""
    write, channels = KINDS[kind]
    generator = np.random.default_rng(0)
    files = []
    for split, count in COUNTS.items():
        rows = []
        for name, low in (("dark", 0), ("light", 160)):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (10, 12, channels), dtype=np.uint8)
                pixels[:, :, -1] = generator.integers(low, low + 90, (10, 12))
                file = write(folder / split / name / str(i), pixels)
                rows.append((file.relative_to(folder).as_posix(), name))
                if split == "val":
                    files.append((file, name))
        with (folder / f"{split}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("file", "label"), *rows])
    # Folders are searched for image files only; CSV files may name arrays
    layout = "csv" if kind == "arrays" else "imagefolder"
    overrides = {
        "DATA.NAME": layout,
        "DATA.ROOT": folder,
        "MODEL.IN_CHANS": channels,
        "INPUT.MEAN": [0.5] * channels,
        "INPUT.STD": [0.25] * channels,
        "INPUT.RESOLUTION": 32,
        "SOLVER.EPOCHS": 8,
        "SOLVER.TRUNK_LR_FACTOR": 1,
        "SOLVER.LR": 0.01,
    }
    return [str(part) for pair in overrides.items() for part in pair], files


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_learns_from_the_last_channel(kind, tmp_path):
    overrides, files = make_dataset(tmp_path / "data", kind)
    run = tmp_path / "run"
    result = train_classifier(load_config(CONFIG, [*overrides, "OUTPUT_DIR", str(run)]), progress=False)
    assert result.metrics["ema_top1"] == 100
    assert {"augmented_images.png", "model_final.pth"} <= {path.name for path in run.iterdir()}
    assert (run / "evaluation" / "mistakes.png").is_file()
    # The checkpoint and its export classify the files
    net = load_classifier_from_checkpoint(run)
    channels = KINDS[kind][1]
    assert (net.preprocessing.channels, net.preprocessing.mean) == (channels, (0.5,) * channels)
    predictor = ClassifierPredictor(TorchRuntime(net.model), net.preprocessing, net.classes)
    networks = [predictor]
    if kind == "arrays":  # an export takes as long as the training
        exported = export_classifier(net.model, net.preprocessing, net.classes, tmp_path / "exported")
        assert exported.manifest.input["shape"][1] == channels
        networks.append(load(tmp_path / "exported"))
    for predict in networks:
        predictions = predict([file for file, _ in files])
        assert [ranked[0].label for ranked in predictions] == [name for _, name in files]
    # Pictures show the first channels
    image = InputImage(str(files[0][0]))
    picture = PictureWriter(tmp_path / "pictures").write(ImagePredictions(image, []))
    assert Image.open(picture).size[1] > 10
    # Arrays mean the same as files
    if kind != "pages":
        pixels = np.load(files[0][0]) if kind == "arrays" else np.asarray(Image.open(files[0][0]))
        assert predictor(pixels) == predictor(files[0][0])
    if kind != "alpha":
        with pytest.raises(
            DataError, match=f"gray.png: is mode L with 1 channel, but the network takes {channels}"
        ):
            Image.new("L", (8, 8)).save(tmp_path / "gray.png")
            predictor(tmp_path / "gray.png")


def test_color_jitter_of_four_channels_is_refused(tmp_path):
    overrides, _ = make_dataset(tmp_path / "data", "alpha")
    cfg = load_config(
        CONFIG, [*overrides, "OUTPUT_DIR", str(tmp_path / "run"), "INPUT.COLOR_JITTER", "0.2"]
    )
    with pytest.raises(UsageError, match="INPUT.COLOR_JITTER needs images with 1 or 3 channels"):
        train_classifier(cfg, progress=False)
    assert not (tmp_path / "run").exists()
