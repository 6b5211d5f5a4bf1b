"""Small stand-ins for the files that commands of README and docs read: datasets, photographs, weights, tables."""

import itertools
import json
import os
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

import fbnetv3
from fbnetv3 import model_zoo
from fbnetv3.arch import get_arch
from fbnetv3.arch.latency_table import LatencyTableWriter, MeasuredDevice, block_shapes
from fbnetv3.data.classes.imagenet import imagenet_synsets
from fbnetv3.deploy.input_images import sample_detector_images
from fbnetv3.deploy.latency.table_measurement import describe_device
from fbnetv3.nars import load_space
from fbnetv3.nars.space.latency_model import possible_shapes
from fbnetv3.utils.downloads import cached_path
from tests.detection.annotation_files import write_formats
from tests.detection.coco_files import annotation, dataset, save_dataset, save_image
from tests.detection.detectors import calibrated_detector, image
from tests.detection.inference.squares import moving_squares, save_video
from tests.modeling.weight_files import mobile_vision, randomized
from tests.pages import ROOT
from tests.tools.test_measure_net import SPACE

# Effect of each operation on the synthetic accuracies of `nas_bench_macro`
OPERATIONS = np.array([0.0, 1.2, 1.5])


def make_data(folder):
    """Write all files below `folder`, under the paths that the pages use."""
    image_folder(folder / "datasets/few", classes=8, side=64, splits={"train": 4, "val": 1})
    image_folder(
        folder / "datasets/thousand", 1000, side=40, splits={"train": 1, "val": 1}, names=imagenet_synsets()
    )
    cifar = {"classes": 10, "side": 32, "splits": {"train": 8, "val": 2}}
    image_folder(folder / "datasets/cifar10", **cifar, distinct=100)
    image_folder(folder / "my_images", classes=2, side=64, splits={"train": 4, "val": 2}, distinct=12)
    label_files(folder / "my_labels", folder / "my_images")
    image_folder(folder / "all_images", classes=2, side=64, splits={"": 6})
    detection_data(folder / "mine", ("cat", "dog", "horse"))
    formats = write_formats(folder / ".formats")
    (folder / "my_boxes").symlink_to(formats["yolo"].parent)
    (folder / "my_voc").symlink_to(formats["voc"])
    coco(folder / "datasets/coco128/coco")
    for name in ("a.png", "b.jpg", "picture.jpg", "photos/one.jpg", "photos/two.jpg"):
        save_image(folder / name, 120, 160)
    # Other pixels than those of the first
    with Image.open(folder / "photos/two.jpg") as photo:
        photo.transpose(Image.Transpose.ROTATE_180).save(folder / "photos/two.jpg")
    if find_spec("cv2"):  # optional: pip install opencv-python-headless
        save_video(folder / "clip.mp4", moving_squares(4))
    seven = next(image for image, digit in zip(*load_digits(return_X_y=True), strict=True) if digit == 7)
    Image.fromarray((seven.reshape(8, 8) * 15).astype(np.uint8)).save(folder / "seven.png")
    nas_bench_macro(folder / "nas-bench-macro_cifar10.json")
    latencies(
        folder / "other.jsonl",
        MeasuredDevice("another", "onnxruntime 1.32.0", 1, 1),
        block_shapes(get_arch("fbnetv3_b")),
    )
    (folder / "tiny.yaml").write_text(json.dumps(SPACE))
    space = load_space(ROOT / "configs/nars/spaces/fbnetv3.yaml")
    latencies(folder / "table2.jsonl", describe_device("onnxruntime", 1), possible_shapes(space))


def label_files(folder, images):
    """Write CSV files that give each image of an image folder its class and a second label."""
    folder.mkdir()
    for split in ("train", "val"):
        rows = [f"{path},{path.parent.name}|any" for path in sorted((images / split).rglob("*.*"))]
        (folder / f"{split}.csv").write_text("\n".join(["file,labels", *rows]))


def image_folder(root, classes, side, splits, distinct=4, names=None):
    """Write images of noise, a folder per class, with a number of images per split; all but a few are links."""
    noise_files = [root.parent / f".{root.name}_{i}.jpg" for i in range(distinct)]
    for i, file in enumerate(noise_files):
        save_image(file, side, side, seed=i)
    files = itertools.cycle(noise_files)
    for split, count in splits.items():
        for c, i in itertools.product(range(classes), range(count)):
            path = root / split / (names[c] if names else f"class{c:04d}") / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(next(files), path)


def detection_data(folder, classes):
    """Write images and annotations in COCO's format, for training and testing."""
    for split in ("train", "test"):
        file, images = save_dataset(folder / f"{split}_files", dataset(4, classes=classes))
        file.rename(folder / f"{split}.json")
        images.rename(folder / split)


def coco(folder):
    """Write a dataset with the layout and classes of COCO 2017."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    for split in ("train", "val"):
        content = {**dataset(4, [annotation(i, i) for i in range(1, 5)]), "categories": categories}
        file, images = save_dataset(folder / split, content)
        images.rename(folder / f"{split}2017")
        (folder / "annotations").mkdir(exist_ok=True)
        file.rename(folder / "annotations" / f"instances_{split}2017.json")


def nas_bench_macro(file):
    """Write a table of all 6,561 networks with synthetic values, in NAS-Bench-Macro's format."""
    rows = {}
    for choice in itertools.product(range(3), repeat=8):
        accuracy = 80 + float((OPERATIONS[[*choice]] * np.linspace(0.5, 1.5, 8)).sum())
        rows["".join(map(str, choice))] = {
            "mean_acc": accuracy,
            "test_acc": [accuracy - 0.1, accuracy, accuracy + 0.1],
            "flops": 1e7 * (5 + sum(choice)),
            "params": 1e6 * (1 + sum(choice) / 10),
            "std": 0.1,
        }
    file.write_text(json.dumps(rows))


def latencies(file, device, shapes):
    """Write a latency table in which all blocks take 0.1 ms."""
    table = LatencyTableWriter(file, device)
    for shape in {*shapes}:
        table.add_block(shape, 0.1)


def make_weights():
    """Write random weights into the download cache as published files; classifiers' with the released names."""
    for letter in "abg":
        torch.manual_seed(0)  # int8 agrees with some random weights, and not with others
        model = randomized(fbnetv3.create_model(f"fbnetv3_{letter}"))
        save_download(
            f"imagenet/fbnetv3_{letter}.yaml", {"state_dict": mobile_vision(model), "model_ema": None}
        )
    detector = "coco/faster_rcnn_fbnetv3_a_C4_224.yaml"
    save_detector(ROOT / "configs" / detector, cached_path(model_zoo.get_checkpoint_url(detector)))


def save_download(name, content):
    path = cached_path(model_zoo.get_checkpoint_url(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def save_detector(config, file):
    """Write a checkpoint, as of training, with weights that detect something in photographs."""
    from fbnetv3.detection.detection_config import load_detection_config

    cfg = load_detection_config(config, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    pixels = np.array(sample_detector_images()[1].convert("RGB").resize((160, 128)))[:, :, ::-1]
    seen = {**image(128, 160), "image": torch.tensor(pixels.copy()).permute(2, 0, 1).float()}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": calibrated_detector(cfg, [seen, seen], 0.01).state_dict()}, file)
