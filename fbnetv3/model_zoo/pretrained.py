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
from fbnetv3.errors import DataError, UnknownNameError, UsageError
from fbnetv3.model_zoo import zoo
from fbnetv3.modeling.torchvision_models import TORCHVISION_PREFIX
from fbnetv3.training.builders import build_model, preprocessing_from_config, resolve_arch
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.text import evenly_spaced

# Values of `weights`: the model zoo's, and random initialization, which suffices to measure latency
PUBLISHED = "published"
RANDOM = "random"


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
        """Load up to `max_images` evenly spaced images of the dataset's "train" or "val" split, and their targets."""
        dataset = build_dataset(self.dataset_name, self.dataset_root, split)
        if len(dataset.classes) != len(self.classes):
            counts = f"{len(dataset.classes)} classes, not the {len(self.classes)} of {self.name}"
            raise UsageError(f"DATA.NAME {self.dataset_name} has {counts}")
        pairs = [dataset[index] for index in evenly_spaced(range(len(dataset)), max_images)]
        return [image for image, _ in pairs], [target for _, target in pairs]


def load_classifier_from_config(
    file: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    weights: str | None = None,
    classes: str | os.PathLike | None = None,
) -> PretrainedClassifier:
    """Load the classifier of a training config with overrides, which are KEY VALUE pairs.

    The default weights are MODEL.WEIGHTS, or those of the run in OUTPUT_DIR. For other weights and for class names, see
    `load_classifier_from_name`.
    """
    cfg = load_config(file, overrides)
    source = weights or cfg.MODEL.WEIGHTS or _run_weights(file, cfg.OUTPUT_DIR)
    return _load_classifier(cfg, str(source), classes)


def load_classifier_from_name(
    name: str, *, weights: str = PUBLISHED, classes: str | os.PathLike | None = None
) -> PretrainedClassifier:
    """Load the classifier of an architecture or a model zoo entry.

    Args:
        name: such as "fbnetv3_b", "digits/fbnetv3_digits" or "torchvision/resnet50", or the path of an architecture's
            YAML file.
        weights: a file, a URL, "published" for the model zoo's, or "random".
        classes: file with the class names, one per line or a JSON list; default: those of the config's dataset.

    Raises:
        UnknownNameError: no architecture, config or weights of that name; the message suggests similar ones.
        UsageError: `name` is a detector, or the class names are unknown.
        WeightsError: the weights cannot be downloaded or do not fit.
    """
    if "/" in name and not Path(name).exists() and not name.startswith(TORCHVISION_PREFIX):
        # A config in the zoo
        if zoo.is_detector(name):
            raise UsageError(f"{name} is a detector: pass the name of a classifier")
        try:
            cfg = zoo.load_zoo_config(name)
        except UnknownNameError as error:
            raise UnknownNameError(f"{name}: no such file, and {error}") from None
    elif zoo.has_weights(name):
        # An architecture with published weights: its config has preprocessing and dataset
        cfg = zoo.load_zoo_config(zoo.entry_for_arch(name).name)
    else:
        # Any other architecture, or its file
        cfg = get_cfg()
        cfg.MODEL.ARCH = name
    return _load_classifier(cfg, weights, classes)


def find_zoo_detector(name: str, weights: str | None = None) -> tuple[Path, str]:
    """Return the config file of a detector in the model zoo, and `weights`, by default the zoo's.

    In the name, such as "coco/faster_rcnn_fbnetv3_a_C4_224", "coco/" and ".yaml" are optional.
    """
    entry = zoo.entry(zoo.DETECTOR_PREFIX + name.removeprefix(zoo.DETECTOR_PREFIX))
    if not weights or weights == PUBLISHED:
        weights = str(entry.local_weights())
    return configs_folder() / entry.name, weights


def find_detector_weights(file: str | os.PathLike, output_dir: str, weights: str | None) -> str | Path:
    """Return the weights to use with a detection config, a path or a URL.

    `weights` is a file, a URL, or "published" for the model zoo's; if it is empty, the weights of the run in
    `output_dir` are used.
    """
    if weights == PUBLISHED:
        return find_zoo_detector(Path(file).name)[1]
    return weights or _run_weights(file, output_dir)


def _run_weights(file: str | os.PathLike, output_dir: str) -> Path:
    weights = RunFolder(output_dir).trained_weights()
    if weights is None:
        raise UsageError(
            f"{file}: no weights found: pass --weights FILE or --weights published, or set OUTPUT_DIR"
        )
    return weights


def _load_classifier(
    cfg: CfgNode, weights: str, classes_file: str | os.PathLike | None
) -> PretrainedClassifier:
    arch = resolve_arch(cfg, cfg.MODEL.ARCH)
    num_classes = cfg.MODEL.NUM_CLASSES
    if weights == PUBLISHED:
        entry = zoo.entry_for_arch(arch.name)
        weights = str(entry.local_weights())
        num_classes = num_classes or entry.num_classes
    classes = read_class_names(classes_file) if classes_file else _dataset_classes(cfg, num_classes)
    if classes_file and num_classes not in (0, len(classes)):
        raise UsageError(
            f"{classes_file}: has {len(classes)} class names, but the network has {num_classes} outputs; "
            "list one name per output"
        )
    weights = "" if weights == RANDOM else weights
    model = build_model(cfg, arch, classes, torch.device("cpu"), weights, require_head=True).eval()
    preprocessing = preprocessing_from_config(cfg, arch)
    return PretrainedClassifier(arch.name, model, preprocessing, classes, cfg.DATA.NAME, cfg.DATA.ROOT)


def read_class_names(file: str | os.PathLike) -> list[str]:
    """Read class names from a file: a JSON list, or one name per line."""
    path = Path(file).expanduser()
    try:
        text = path.read_text()
        names = (
            json.loads(text)
            if path.suffix == ".json"
            else [line.strip() for line in text.strip().splitlines()]
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and name for name in names)
    ):
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
