"""The entries of the model zoo: their configs, weights and networks. Only detectors need detectron2."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.arch import ArchDef, NetworkCost, compute_cost, configs_folder, get_arch
from fbnetv3.config import load_config
from fbnetv3.data import Preprocessing, build_dataset
from fbnetv3.data.classes.imagenet import imagenet_classes
from fbnetv3.errors import UnknownNameError, UsageError, suggest
from fbnetv3.modeling import build_network, load_weights
from fbnetv3.training import preprocessing_from_config
from fbnetv3.training.run_state.network_record import NetworkRecord
from fbnetv3.utils.downloads import is_url, local_path
from fbnetv3.utils.files import shipped_folder
from fbnetv3.utils.nested_keys import flatten
from fbnetv3.utils.yaml_files import read_with_bases

DETECTOR_PREFIX = "coco/"  # folder of the detection configs below `configs/`
_CLASSIFIER_FOLDERS = ("cifar10", "digits", "imagenet")
_FOLDER = shipped_folder("model_zoo", "model_zoo_data")


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """A config with pretrained weights."""

    name: str  # path of the config below `configs/`
    weights: str  # URL, or path of a file that ships with the package
    num_classes: int  # without background
    sha256: str | None = None  # checksum of the weights or its beginning, if known
    tag: str = ""  # distinguishes the weights of an architecture, with timm's names such as ra2_in1k
    source: str = ""  # who trained the network

    def __str__(self) -> str:
        return self.name

    def local_weights(self) -> Path:
        """Return the path of the weights on this machine, downloading them if necessary."""
        return local_path(self.weights, self.sha256)


@dataclass(frozen=True, kw_only=True)
class DetectorEntry(ZooEntry):
    """A detection config with pretrained weights."""

    ap: float | None = None  # box AP on COCO val2017 in percent, as given by the source

    @property
    def arch(self) -> ArchDef:
        """The architecture of backbone, RPN head and box head."""
        return get_arch(read_with_bases(configs_folder() / self.name)["MODEL"]["FBNETV3"]["ARCH"])


@dataclass(frozen=True, kw_only=True)
class ClassifierEntry(ZooEntry):
    """A training config with pretrained weights."""

    top1: float | None = None  # accuracy in percent, as given by the source
    top5: float | None = None

    @property
    def arch(self) -> ArchDef:
        """The architecture."""
        return get_arch(load_zoo_config(self.name).MODEL.ARCH)

    @property
    def in_chans(self) -> int:
        """Channels of the input."""
        return load_zoo_config(self.name).MODEL.IN_CHANS

    @property
    def resolution(self) -> int:
        """Height and width of the input in pixels."""
        return self.preprocessing.resolution

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the input; `.preprocessing.transform()` is the transform."""
        return preprocessing_from_config(load_zoo_config(self.name), self.arch)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs."""
        cfg = load_zoo_config(self.name)
        if cfg.DATA.NAME == "imagefolder":
            return imagenet_classes()
        return tuple(build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, "val").classes)

    @property
    def record(self) -> NetworkRecord:
        """What a checkpoint of the network would record about it."""
        cfg = load_zoo_config(self.name)
        return NetworkRecord(self.arch, self.in_chans, self.classes, self.preprocessing, flatten(cfg))

    @property
    def params(self) -> int:
        """Number of trainable parameters."""
        return self._cost().params

    @property
    def macs(self) -> int:
        """Multiply-adds (MACs) for one image, counted as in the paper's Table 4."""
        return self._cost().macs

    def _cost(self) -> NetworkCost:
        return compute_cost(
            self.arch, self.resolution, num_classes=self.num_classes, in_chans=self.in_chans
        )


def is_detector(name: str) -> bool:
    """Return whether the path of a config, below `configs/`, is that of a detector."""
    return name.startswith(DETECTOR_PREFIX)


@cache
def _entries() -> dict[str, ClassifierEntry | DetectorEntry]:
    """Return the entries of entries.yaml by name, in the order of the file."""
    entries = {}
    for name, fields in yaml.safe_load((_FOLDER / "entries.yaml").read_text()).items():
        # Paths of bundled weights are relative to the folder
        if not is_url(fields["weights"]):
            fields["weights"] = str(_FOLDER / fields["weights"])
        entries[name] = (DetectorEntry if is_detector(name) else ClassifierEntry)(name=name, **fields)
    return entries


def list_classifiers() -> list[ClassifierEntry]:
    """Return the classifiers that have weights, sorted by name."""
    return [entry for _, entry in sorted(_entries().items()) if isinstance(entry, ClassifierEntry)]


def list_detectors() -> list[DetectorEntry]:
    """Return the detectors that have weights, sorted by name."""
    return [entry for _, entry in sorted(_entries().items()) if isinstance(entry, DetectorEntry)]


def entry(path: str | ZooEntry) -> ClassifierEntry | DetectorEntry:
    """Return a config's entry.

    `path` is relative to `configs/`, such as "imagenet/fbnetv3_a.yaml"; the suffix is optional.

    Raises:
        UnknownNameError: the zoo has no weights for that config; the message suggests similar names.
    """
    name = _with_suffix(str(path))
    same_task = {
        other: entry for other, entry in _entries().items() if is_detector(other) == is_detector(name)
    }
    return _look_up(same_task, name, f"no weights for '{path}' in the model zoo")


def entry_for_arch(arch: str, tag: str = "") -> ClassifierEntry:
    """Return the entry whose network has the architecture of that name: that with the tag, or the default one."""
    entries = _look_up(_entries_by_arch(), arch, f"no pretrained weights for '{arch}'")
    default, *_ = entries.values()
    return _look_up(entries, tag, f"no pretrained weights '{tag}' for '{arch}'") if tag else default


def entry_for_config(path: str | os.PathLike, arch: str) -> ClassifierEntry:
    """Return the entry of a config file, if it is one of the zoo's for that architecture, else the architecture's."""
    file = Path(path).resolve()
    for entry in entries_for_arch(arch):
        if (configs_folder() / entry.name).resolve() == file:
            return entry
    return entry_for_arch(arch)


def entries_for_arch(arch: str) -> list[ClassifierEntry]:
    """Return all entries whose network has the architecture of that name, the default one first."""
    return list(_entries_by_arch().get(arch, {}).values())


def default_entry(arch: ArchDef) -> ClassifierEntry | None:
    """Return the default entry of an architecture, or None if there is none for these blocks."""
    entries = entries_for_arch(arch.name)
    return entries[0] if entries and entries[0].arch.stages == arch.stages else None


def has_weights(arch: str) -> bool:
    """Return whether the zoo has weights for an architecture."""
    return arch in _entries_by_arch()


@cache
def _entries_by_arch() -> dict[str, dict[str, ClassifierEntry]]:
    """Return the classifiers' entries by architecture and tag, in the order of the file."""
    by_arch: dict[str, dict[str, ClassifierEntry]] = {}
    for entry in _entries().values():
        if isinstance(entry, ClassifierEntry):
            by_arch.setdefault(entry.arch.name, {})[entry.tag] = entry
    return by_arch


def load_zoo_config(path: str) -> CfgNode:
    """Return a copy of the config at a path below `configs/`, with or without weights in the zoo.

    Configs below `coco/` are detectron2 configs, for which it must be installed; those below `cifar10/`, `digits/` and
    `imagenet/` are training configs.
    """
    name = _with_suffix(path)
    if is_detector(name):
        from fbnetv3 import detection

        return detection.get_config(name.removeprefix(DETECTOR_PREFIX))
    # Callers get a copy that they may change
    cfg = _load_config(_look_up(_config_files(), name, f"no config '{path}' in the model zoo")).clone()
    cfg.defrost()
    return cfg


_load_config = cache(load_config)  # which takes milliseconds


@cache
def _config_files() -> dict[str, Path]:
    """Return the files of the classifiers' training configs by their path below `configs/`."""
    files = [file for name in _CLASSIFIER_FOLDERS for file in (configs_folder() / name).glob("*.yaml")]
    return {file.relative_to(configs_folder()).as_posix(): file for file in files}


def get_checkpoint_url(path: str) -> str:
    """Return the URL of an entry's weights, or the path of weights that ship with the package.

    The name is that of detectron2's function.
    """
    return entry(path).weights


def get(path: str | ZooEntry, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build the network of a config in training mode: a classifier, or below `coco/` a detectron2 model.

    Args:
        path: path of a config below `configs/`, such as "imagenet/fbnetv3_a.yaml", or an entry.
        trained: load the zoo's weights, downloaded on first use; otherwise weights are random.
        device: the network's device; default: a GPU if there is one, else the CPU.

    Raises:
        UnknownNameError: no such config, or with `trained` no weights for it.
        UsageError: the number of classes depends on the dataset.
        WeightsError: the weights cannot be downloaded; the message says where to place a copy.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    path = str(path)
    if is_detector(path):
        return _build_detector(path, trained, device)
    cfg = load_zoo_config(path)
    num_classes = cfg.MODEL.NUM_CLASSES
    if not num_classes and trained:
        num_classes = entry(path).num_classes
    if not num_classes:
        raise UsageError(
            f"{path}: the config does not set the number of classes; use fbnetv3.create_model(..., num_classes=N)"
        )
    model = build_network(
        get_arch(cfg.MODEL.ARCH),
        num_classes=num_classes,
        in_chans=cfg.MODEL.IN_CHANS,
        drop_rate=cfg.MODEL.DROP_RATE,
        drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
    )
    if trained:
        load_weights(model, entry(path).local_weights())
    return model.to(device)


def _build_detector(path: str, trained: bool, device: str) -> nn.Module:
    from detectron2.modeling import build_model

    from fbnetv3 import detection

    cfg = load_zoo_config(path)
    cfg.MODEL.DEVICE = device
    if not trained:
        return build_model(cfg)
    weights = entry(path).local_weights()
    cfg.MODEL.WEIGHTS = str(weights)  # otherwise building the model loads the weights of a classifier
    return detection.load_detector(build_model(cfg), weights)


def _look_up(items: dict[str, Any], name: str, problem: str) -> Any:
    """Return the item of that name; an error begins with the problem and suggests similar names."""
    if name not in items:
        raise UnknownNameError(f"{problem}: {suggest(name, items)}")
    return items[name]


def _with_suffix(path: str) -> str:
    return path if path.endswith(".yaml") else f"{path}.yaml"
