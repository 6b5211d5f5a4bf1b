"""A trained classifier with all that its use takes: the network, how it wants its images, the names of its classes.

Of detectors, config and weights."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.arch import ARCHS, configs_folder
from fbnetv3.config import get_cfg, load_config
from fbnetv3.data import Preprocessing, build_dataset
from fbnetv3.data.transforms import AnyImage
from fbnetv3.errors import DataError, UnknownNameError, UsageError, suggest
from fbnetv3.model_zoo import zoo
from fbnetv3.model_zoo.detector_entries import DetectorEntry
from fbnetv3.training.builders import build_arch, build_model, preprocessing_of
from fbnetv3.training.run_state.run_folder import RunFiles

PUBLISHED, RANDOM = "published", "random"
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier ready for use.

    Attributes:
        name: of its architecture.
        model: in evaluation mode, on the CPU.
        preprocessing: how images become its input.
        classes: names of its outputs.
        data: name and folder of the config's dataset.
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    classes: list[str]
    data: tuple[str, str]

    def labelled(self, split: str, most: int) -> tuple[list[AnyImage], list[int]]:
        """Images of the dataset, spread evenly over it, and the number of each one's class.

        Args:
            split: "train" or "val".
            most: how many at most.

        Raises:
            DataError: the dataset is not there, or an image is damaged.
            UsageError: it has another number of classes than the network.
        """
        found = build_dataset(*self.data, split)
        if len(found.classes) != len(self.classes):
            raise UsageError(
                f"DATA.NAME {self.data[0]} has {len(found.classes)} classes, {self.name} {len(self.classes)}"
            )
        step = max(1, len(found) / most)
        pairs = [found[int(i * step)] for i in range(min(most, len(found)))]
        return [image for image, _ in pairs], [target for _, target in pairs]


def from_config(
    file: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    weights: str | None = None,
    classes: str | os.PathLike | None = None,
) -> TrainedClassifier:
    """The classifier of a training config.

    Args:
        file: the config.
        overrides: KEY VALUE pairs on top of it.
        weights: a file, a URL, "published" for the zoo's, or "random" for fresh ones, with which speed can be
            measured; default: MODEL.WEIGHTS, else what OUTPUT_DIR holds.
        classes: a file with the classes' names, a name a line or a JSON list; default: the dataset's.

    Raises:
        UserError: a wrong config, no weights or weights that do not fit, or classes whose names are not known.
    """
    cfg = load_config(file, overrides)
    if weights is None:
        found = cfg.MODEL.WEIGHTS or RunFiles(Path(cfg.OUTPUT_DIR).expanduser()).found_weights()
        if not found:
            raise UsageError(
                f"{file}: no weights: give --weights FILE or published, or set OUTPUT_DIR to a run's folder "
                f"({cfg.OUTPUT_DIR} has none)"
            )
        weights = str(found)
    return _classifier(cfg, weights, classes)


def from_name(name: str, *, weights: str = PUBLISHED, classes: str | os.PathLike | None = None) -> TrainedClassifier:
    """The classifier of an architecture's name, such as "fbnetv3_b", or of a zoo entry, such as
    "digits/fbnetv3_digits". The other arguments and the errors are those of `from_config`."""
    if "/" in name and not Path(name).exists():
        if name.startswith("coco/"):
            raise UsageError(f"{name}: is a detector; this takes classifiers")
        return _classifier(zoo.get_config(name), weights, classes)
    if zoo.has_weights(name):
        return _classifier(zoo.get_config(zoo.entry_for_arch(name).name), weights, classes)
    if name not in ARCHS and not name.endswith((".yaml", ".yml")):
        raise UnknownNameError(f"unknown architecture '{name}': {suggest(name, ARCHS.names())}")
    cfg = get_cfg()
    cfg.MODEL.ARCH = name
    return _classifier(cfg, weights, classes)


def detector_from_name(name: str, weights: str | None = None) -> tuple[Path, str | Path]:
    """The config file of one of the zoo's detectors, and its weights.

    Args:
        name: such as "coco/faster_rcnn_fbnetv3_a_C4_224"; "coco/" and ".yaml" may be missing.
        weights: others than the zoo's.

    Raises:
        UsageError: no such detector, or none with weights; the text suggests close names.
    """
    entry = _zoo_detector(name)
    return configs_folder() / entry.name, weights if weights not in (None, PUBLISHED) else entry.local_weights()


def detector_weights(file: str | os.PathLike, output: str, weights: str | None) -> str | Path:
    """The weights of a detector's config.

    Args:
        file: the config.
        output: its OUTPUT_DIR.
        weights: a file, a URL, or "published" for the zoo's; None for what the run in `output` has left.

    Raises:
        UsageError: there are none; the text says what to give.
    """
    if weights == PUBLISHED:
        return _zoo_detector(Path(file).name).local_weights()
    if weights == RANDOM:
        raise UsageError("--weights random is for classifiers: a detector that finds nothing cannot be compared")
    if weights:
        return weights
    found = RunFiles(Path(output).expanduser()).weights
    if not found.exists():
        raise UsageError(
            f"{file}: no weights: give --weights FILE, or set OUTPUT_DIR to a run's folder ({output} has none)"
        )
    return found


def _zoo_detector(name: str) -> DetectorEntry:
    entries = {entry.name: entry for entry in zoo.list_detectors()}
    path = f"coco/{name.removeprefix('coco/').removesuffix('.yaml')}.yaml"
    if path not in entries:
        raise UsageError(f"no detector '{name}' with weights in the model zoo: {suggest(path, entries)}")
    return entries[path]


def _classifier(cfg: CfgNode, weights: str, classes_file: str | os.PathLike | None) -> TrainedClassifier:
    arch = build_arch(cfg, cfg.MODEL.ARCH)
    num_classes = cfg.MODEL.NUM_CLASSES
    if weights == PUBLISHED:
        entry = zoo.entry_for_arch(arch.name)
        weights, num_classes = str(entry.local_weights()), num_classes or entry.num_classes
    elif weights == RANDOM:
        weights = ""
    classes = read_classes(classes_file) if classes_file else _known_classes(cfg, num_classes)
    if num_classes and num_classes != len(classes):
        raise UsageError(f"{classes_file or cfg.DATA.ROOT}: {len(classes)} class names for {num_classes} outputs")
    model = build_model(cfg, arch, classes, torch.device("cpu"), weights, need_head=True)
    return TrainedClassifier(
        arch.name, model.eval(), preprocessing_of(cfg, arch), classes, (cfg.DATA.NAME, cfg.DATA.ROOT)
    )


def read_classes(file: str | os.PathLike) -> list[str]:
    """Names of classes from a file: a JSON list, or a name a line.

    Raises:
        DataError: it cannot be read, or holds no names.
    """
    path = Path(file).expanduser()
    try:
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.strip().splitlines()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{path}: is neither text nor JSON") from None
    if not isinstance(found, list) or not found or not all(isinstance(name, str) and name for name in found):
        raise DataError(f"{path}: holds no list of names; give a name a line, or a JSON list")
    return found


def _known_classes(cfg: CfgNode, num_classes: int) -> list[str]:
    """The dataset's, where it is there; else ImageNet's, where their number fits."""
    try:
        return build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, "val").classes
    except (DataError, UsageError) as error:
        if cfg.DATA.NAME == "imagefolder" and num_classes in (0, _IMAGENET_CLASSES):
            return _imagenet_classes()
        raise UsageError(f"the names of the classes are not known ({error}): give --classes FILE") from None


def _imagenet_classes() -> list[str]:
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
