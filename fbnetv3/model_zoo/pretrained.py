"""Load classifiers with their weights, preprocessing and class names; find configs and weights of detectors."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.arch import configs_folder
from fbnetv3.config import get_cfg, load_config
from fbnetv3.data import Preprocessing, build_dataset
from fbnetv3.data.transforms import AnyImage
from fbnetv3.errors import DataError, UsageError
from fbnetv3.model_zoo import zoo
from fbnetv3.training.builders import build_arch, build_model, preprocessing_from_config
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.text import evenly_spaced

PUBLISHED = "published"
"""Value of `weights` that selects the model zoo's weights."""
RANDOM = "random"
"""Value of `weights` that selects random initialization, which suffices to measure latency."""


@dataclass(frozen=True)
class PretrainedClassifier:
    """A classifier with what is needed to use it."""

    name: str  # of its architecture
    model: nn.Module  # in evaluation mode, on the CPU
    preprocessing: Preprocessing  # turns images into the network's input
    classes: list[str]  # names of the network's outputs
    dataset_name: str  # DATA.NAME of its config
    dataset_root: str  # DATA.ROOT of its config

    def labeled_images(self, split: str, max_images: int) -> tuple[list[AnyImage], list[int]]:
        """Load images of its dataset, evenly spaced, and their class indices.

        Args:
            split: "train" or "val".
            max_images: maximum number of images.

        Raises:
            DataError: the dataset is missing, or an image is corrupt.
            UsageError: the dataset and the network have different numbers of classes.
        """
        dataset = build_dataset(self.dataset_name, self.dataset_root, split)
        if len(dataset.classes) != len(self.classes):
            raise UsageError(
                f"DATA.NAME {self.dataset_name} has {len(dataset.classes)} classes, {self.name} has {len(self.classes)}"
            )
        pairs = [dataset[index] for index in evenly_spaced(range(len(dataset)), max_images)]
        return [image for image, _ in pairs], [target for _, target in pairs]


def load_classifier_from_config(
    file: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    weights: str | None = None,
    classes: str | os.PathLike | None = None,
) -> PretrainedClassifier:
    """Load the classifier of a training config.

    Args:
        file: the config.
        overrides: KEY VALUE pairs.
        weights: a file, a URL, "published" for the model zoo's, or "random"; default: MODEL.WEIGHTS, or the weights
            of the run in OUTPUT_DIR.
        classes: file with the class names, one per line or a JSON list; default: those of the dataset.
    """
    cfg = load_config(file, overrides)
    source = weights or cfg.MODEL.WEIGHTS or RunFolder(cfg.OUTPUT_DIR).trained_weights()
    if not source:
        raise UsageError(
            f"{file}: no weights found: pass --weights FILE or --weights published, or set OUTPUT_DIR to the folder of "
            f"a finished run ({cfg.OUTPUT_DIR} has no weights)"
        )
    return _load_classifier(cfg, str(source), classes)


def load_classifier_from_name(
    name: str, *, weights: str = PUBLISHED, classes: str | os.PathLike | None = None
) -> PretrainedClassifier:
    """Load the classifier of an architecture or a model zoo entry.

    Args:
        name: such as "fbnetv3_b" or "digits/fbnetv3_digits".
        weights: a file, a URL, "published" for the model zoo's, or "random".
        classes: file with the class names, one per line or a JSON list; default: those of the dataset.
    """
    if "/" in name and not Path(name).exists():
        # A config in the zoo
        if zoo.is_detector(name):
            raise UsageError(f"{name} is a detector: pass the name of a classifier")
        cfg = zoo.load_zoo_config(name)
    elif zoo.has_weights(name):
        # An architecture with published weights: its config has preprocessing and dataset
        cfg = zoo.load_zoo_config(zoo.entry_for_arch(name).name)
    else:
        # Any other architecture, or its file
        cfg = get_cfg()
        cfg.MODEL.ARCH = name
    return _load_classifier(cfg, weights, classes)


def find_zoo_detector(name: str, weights: str | None = None) -> tuple[Path, str | Path]:
    """Return the config file and the weights of a detector in the model zoo.

    Args:
        name: such as "coco/faster_rcnn_fbnetv3_a_C4_224"; "coco/" and ".yaml" are optional.
        weights: weights to use instead of the zoo's.
    """
    entry = zoo.entry(zoo.DETECTOR_PREFIX + name.removeprefix(zoo.DETECTOR_PREFIX))
    return configs_folder() / entry.name, entry.local_weights() if weights in (None, PUBLISHED) else weights


def find_detector_weights(file: str | os.PathLike, output_dir: str, weights: str | None) -> str | Path:
    """Return the weights to use with a detection config.

    Args:
        file: the config.
        output_dir: its OUTPUT_DIR.
        weights: a file, a URL, or "published" for the model zoo's; None for those of the run in `output_dir`.
    """
    if weights == PUBLISHED:
        return find_zoo_detector(Path(file).name)[1]
    run_weights = RunFolder(output_dir).weights
    if not weights and not run_weights.exists():
        raise UsageError(
            f"{file}: no weights found: pass --weights FILE, or set OUTPUT_DIR to the folder of a finished run "
            f"({output_dir} has no weights)"
        )
    return weights or run_weights


def _load_classifier(cfg: CfgNode, weights: str, classes_file: str | os.PathLike | None) -> PretrainedClassifier:
    arch = build_arch(cfg, cfg.MODEL.ARCH)
    num_classes = cfg.MODEL.NUM_CLASSES
    if weights == PUBLISHED:
        entry = zoo.entry_for_arch(arch.name)
        weights = str(entry.local_weights())
        num_classes = num_classes or entry.num_classes
    classes = read_class_names(classes_file) if classes_file else _dataset_classes(cfg, num_classes)
    if classes_file and num_classes not in (0, len(classes)):
        raise UsageError(f"{classes_file}: {len(classes)} class names for {num_classes} outputs")
    weights = "" if weights == RANDOM else weights
    model = build_model(cfg, arch, classes, torch.device("cpu"), weights, need_head=True).eval()
    preprocessing = preprocessing_from_config(cfg, arch)
    return PretrainedClassifier(arch.name, model, preprocessing, classes, cfg.DATA.NAME, cfg.DATA.ROOT)


def read_class_names(file: str | os.PathLike) -> list[str]:
    """Read class names from a file: a JSON list, or one name per line."""
    path = Path(file).expanduser()
    try:
        text = path.read_text()
        names = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.strip().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path} is not a list of names: write one name per line, or a JSON list")
    return names


def _dataset_classes(cfg: CfgNode, num_classes: int) -> list[str]:
    """Return the class names of the config's dataset, or ImageNet's if it is missing and the number fits."""
    try:
        return build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, "val").classes
    except (DataError, UsageError) as error:
        if cfg.DATA.NAME != "imagefolder" or num_classes not in (0, 1000):
            raise UsageError(f"the class names are unknown ({error}): pass --classes FILE") from None
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
