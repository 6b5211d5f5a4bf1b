"""Load classifiers with their weights, preprocessing and class names; find configs and weights of detectors."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.arch import configs_folder
from fbnetv3.config import get_cfg, load_config
from fbnetv3.data import Preprocessing, build_dataset
from fbnetv3.data.classes.class_matching import relabel
from fbnetv3.data.classes.class_names import read_class_names, warn_of_repeated_names
from fbnetv3.data.classes.imagenet import imagenet_classes
from fbnetv3.data.corrupt_images import CorruptImageError
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.data.transforms import AnyImage
from fbnetv3.errors import DataError, UnknownNameError, UsageError
from fbnetv3.model_zoo import zoo
from fbnetv3.modeling.qat.quantized_layers import LearnedInt8
from fbnetv3.modeling.torchvision_models import TORCHVISION_PREFIX
from fbnetv3.training.builders import build_model, preprocessing_from_config, resolve_arch
from fbnetv3.training.recorded_networks import config_from_record, use_recorded_network
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.training.run_state.network_record import NetworkRecord, read_network_record
from fbnetv3.training.run_state.run_folder import RunFolder, select_weights
from fbnetv3.utils.downloads import ZOO_PREFIX
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.nested_keys import parse_pairs
from fbnetv3.utils.text import evenly_spaced, first_few

logger = logging.getLogger(__name__)

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
    multi_label: bool = False  # whether images have several labels
    learned_int8: LearnedInt8 | None = None  # from quantization-aware training

    def labeled_images(self, split: str, max_images: int) -> tuple[list[AnyImage], list[int] | None]:
        """Load up to `max_images` evenly spaced images of the dataset's "train" or "val" split, and their classes.

        The classes are None if images have several labels. A corrupt image is returned as its name, with class -1, so
        that loading it fails.
        """
        dataset = build_dataset(self.dataset_name, self.dataset_root, split)
        dataset = relabel(dataset, self.classes, f"the {split} split", self.name)
        pairs = [_read_pair(dataset, index) for index in evenly_spaced(range(len(dataset)), max_images)]
        images = [image for image, _ in pairs]
        return images, None if self.multi_label else [target for _, target in pairs]


def _read_pair(dataset: ImageDataset, index: int) -> tuple[Any, int]:
    try:
        return dataset[index]
    except CorruptImageError:
        return dataset.image_name(index), -1


def load_classifier_from_config(
    file: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    weights: str | None = None,
    classes: str | os.PathLike | None = None,
) -> PretrainedClassifier:
    """Load the classifier of a training config with overrides, which are KEY VALUE pairs.

    The default weights are those of the run in OUTPUT_DIR, or MODEL.WEIGHTS; see `select_weights`. For other weights
    and for class names, see `load_classifier_from_name`. If the weights record their network, it is used instead of
    what the config says; overrides stay.
    """
    cfg = load_config(file, overrides)
    keep = parse_pairs(overrides)
    source = weights or select_weights(cfg, keep)
    if not source:
        raise _no_weights(file)
    return _load_classifier(cfg, source, classes, file, keep)


def load_classifier_from_checkpoint(
    path: str | os.PathLike, *, classes: str | os.PathLike | None = None
) -> PretrainedClassifier:
    """Load the classifier of a checkpoint or of a run's folder, which record network, preprocessing and class names.

    Args:
        path: a file of weights that a training run has written, or the folder of a run.
        classes: file with other class names, one per line or a JSON list.

    Raises:
        UsageError: the folder has no weights, or the weights do not record their network.
        WeightsError: the weights cannot be loaded.
    """
    weights = RunFolder(os.fspath(path)).trained_weights() if expand_path(path).is_dir() else path
    if weights is None:
        raise UsageError(f"{path}: contains neither an exported network nor the weights of a training run")
    record = read_network_record(str(weights))
    if record is None and read_detector_record(str(weights)) is not None:
        raise UsageError(f"{weights}: is a detector, not a classifier: use `fbnetv3 detect`")
    if record is None:
        raise UsageError(
            f"{weights}: does not record its network: pass the name of the architecture or a config, with this file "
            "as --weights"
        )
    return _load_classifier(config_from_record(record, str(weights)), str(weights), classes)


def is_checkpoint(name: str) -> bool:
    """Return whether a name is the path of a file of weights, or of a folder."""
    path = expand_path(name)
    return path.is_dir() or (path.is_file() and path.suffix not in (".yaml", ".yml"))


def load_classifier_from_name(
    name: str, *, weights: str = PUBLISHED, classes: str | os.PathLike | None = None
) -> PretrainedClassifier:
    """Load the classifier of an architecture, a model zoo entry or a checkpoint.

    Args:
        name: such as "fbnetv3_b", "digits/fbnetv3_digits" or "torchvision/resnet50", the path of an architecture's
            YAML file, or that of a checkpoint or run; see `load_classifier_from_checkpoint`.
        weights: a file, a URL, "published" for the model zoo's, or "random".
        classes: file with the class names, one per line or a JSON list; default: those that the weights record, or
            those of the config's dataset.

    Raises:
        UnknownNameError: no architecture, config or weights of that name; the message suggests similar ones.
        UsageError: `name` is a detector, or the class names are unknown.
        WeightsError: the weights cannot be downloaded or do not fit.
    """
    if is_checkpoint(name):
        if weights != PUBLISHED:
            raise UsageError(f"{name}: is a checkpoint with weights of its own: omit --weights")
        return load_classifier_from_checkpoint(name, classes=classes)
    config = Path()
    if "/" in name and not Path(name).exists() and not name.startswith(TORCHVISION_PREFIX):
        # A config in the zoo
        if zoo.is_detector(name):
            raise UsageError(f"{name} is a detector: pass the name of a classifier")
        try:
            cfg = zoo.load_zoo_config(name)
            config = configs_folder() / f"{name.removesuffix('.yaml')}.yaml"
        except UnknownNameError as error:
            raise UnknownNameError(f"{name}: no such file, and {error}") from None
    elif zoo.has_weights(name):
        # An architecture with published weights: its config has preprocessing and dataset
        cfg = zoo.load_zoo_config(zoo.entry_for_arch(name).name)
    else:
        # Any other architecture, or its file
        cfg = get_cfg()
        cfg.MODEL.ARCH = name
        try:
            resolve_arch(cfg, name)
        except UnknownNameError as error:
            kinds = "run, checkpoint, exported folder, config or model zoo entry"
            raise UnknownNameError(f"{name}: no such {kinds}, and {error}") from None
    return _load_classifier(cfg, weights, classes, config)


def find_zoo_detector(name: str, weights: str | None = None) -> tuple[Path, str]:
    """Return the config file of a detector in the model zoo, and `weights`, by default the zoo's.

    In the name, such as "coco/faster_rcnn_fbnetv3_a_C4_224", "coco/" and ".yaml" are optional.
    """
    entry = zoo.entry(zoo.DETECTOR_PREFIX + name.removeprefix(zoo.DETECTOR_PREFIX))
    if not weights or weights == PUBLISHED:
        weights = str(entry.local_weights())
    return configs_folder() / entry.name, weights


def find_detector_weights(
    file: str | os.PathLike, cfg: CfgNode, weights: str | None, keep: Collection[str] = ()
) -> str:
    """Return the weights to use with a detection config, a path or a URL.

    `weights` is a file, a URL, or "published" for the model zoo's; if it is empty, `select_weights` chooses between
    the run in OUTPUT_DIR and MODEL.WEIGHTS.
    """
    if weights == PUBLISHED:
        return find_zoo_detector(Path(file).name)[1]
    weights = weights or select_weights(cfg, keep)
    if not weights:
        raise _no_weights(file)
    return weights


def _no_weights(file: str | os.PathLike) -> UsageError:
    return UsageError(
        f"{file}: no weights found: pass --weights FILE or --weights published, or set OUTPUT_DIR"
    )


def _load_classifier(
    cfg: CfgNode,
    weights: str,
    classes_file: str | os.PathLike | None,
    config: str | os.PathLike = "",
    keep: Collection[str] = (),
) -> PretrainedClassifier:
    """Load the classifier of a config that was read from the file `config`, if any."""
    if weights == PUBLISHED:
        entry = zoo.entry_for_config(config, resolve_arch(cfg, cfg.MODEL.ARCH).name)
        weights = ZOO_PREFIX + entry.name
    weights = "" if weights == RANDOM else weights
    record = read_network_record(weights) if weights else None
    cfg, arch = use_recorded_network(cfg, record, weights, keep)
    classes = _class_names(cfg, record, classes_file)
    model = build_model(cfg, arch, classes, torch.device("cpu"), weights, require_head=True, record=record)
    preprocessing = preprocessing_from_config(cfg, arch)
    return PretrainedClassifier(
        arch.name,
        model.eval(),
        preprocessing,
        classes,
        cfg.DATA.NAME,
        cfg.DATA.ROOT,
        multi_label=bool(record and record.multi_label),
        learned_int8=record.learned_int8 if record else None,
    )


def _class_names(
    cfg: CfgNode, record: NetworkRecord | None, classes_file: str | os.PathLike | None
) -> list[str]:
    """Return the names in the file, else those that the weights record, else those of the config's dataset."""
    recorded = list(record.classes) if record else []
    if not classes_file:
        warn_of_repeated_names(recorded, "the weights")
        return recorded or _dataset_classes(cfg, cfg.MODEL.NUM_CLASSES)
    classes = read_class_names(classes_file)
    num_classes = len(recorded) or cfg.MODEL.NUM_CLASSES
    if num_classes not in (0, len(classes)):
        raise UsageError(
            f"{classes_file}: has {len(classes)} class names, but the network has {num_classes} outputs; "
            "list one name per output"
        )
    if recorded and recorded != classes:
        logger.info(
            "class names from %s, as given; the weights have %s", classes_file, first_few(recorded, 10)
        )
    return classes


def _dataset_classes(cfg: CfgNode, num_classes: int) -> list[str]:
    """Return the class names of the config's dataset, or ImageNet's if it is missing and the number fits."""
    try:
        return build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, "val").classes
    except (DataError, UsageError) as error:
        if cfg.DATA.NAME != "imagefolder" or num_classes not in (0, 1000):
            raise UsageError(f"the class names are unknown ({error}): pass --classes FILE") from None
    return list(imagenet_classes())
