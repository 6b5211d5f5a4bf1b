"""Find configs and weights in the model zoo, and build its networks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from fvcore.common.config import CfgNode
from iopath.common.file_io import PathHandler
from torch import nn

from fbnetv3.arch import ArchDef, NetworkCost, compute_cost, configs_folder, get_arch
from fbnetv3.config import load_config
from fbnetv3.data import Preprocessing
from fbnetv3.errors import UnknownNameError, UsageError, suggest
from fbnetv3.model_zoo.detector_entries import DetectorEntry, build_detector, detector_config, is_detector
from fbnetv3.model_zoo.zoo_entry import ZooEntry
from fbnetv3.modeling import build_network, load_weights
from fbnetv3.training import preprocessing_from_config
from fbnetv3.utils.downloads import ZOO_PREFIX, PathManager, is_url
from fbnetv3.utils.files import shipped_folder

_FOLDER = shipped_folder("model_zoo", "model_zoo_data")


@dataclass(frozen=True, kw_only=True)
class ClassifierEntry(ZooEntry):
    """A training config with pretrained weights.

    Attributes:
        top1: top-1 accuracy in percent, as given by the source; None if unknown.
        top5: top-5 accuracy in percent, as given by the source; None if unknown.
    """

    top1: float | None = None
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
    def params(self) -> int:
        """Number of trainable parameters."""
        return self._cost().params

    @property
    def macs(self) -> int:
        """Multiply-accumulates for an image, counted as in the paper's Table 4."""
        return self._cost().macs

    def _cost(self) -> NetworkCost:
        return compute_cost(self.arch, self.resolution, num_classes=self.num_classes, in_chans=self.in_chans)


@cache
def _entries() -> dict[str, ClassifierEntry | DetectorEntry]:
    """Return the entries of entries.yaml by name, sorted."""
    # Paths of bundled weights are relative to the folder
    data = yaml.safe_load((_FOLDER / "entries.yaml").read_text())
    entries = {}
    for name, fields in sorted(data.items()):
        weights = fields["weights"]
        entry_type = DetectorEntry if is_detector(name) else ClassifierEntry
        fields["weights"] = weights if is_url(weights) else str(_FOLDER / weights)
        entries[name] = entry_type(name=name, **fields)
    return entries


def list_classifiers() -> list[ClassifierEntry]:
    """Return the classifiers that have weights, sorted by name."""
    return [entry for entry in _entries().values() if isinstance(entry, ClassifierEntry)]


def list_detectors() -> list[DetectorEntry]:
    """Return the detectors that have weights, sorted by name."""
    return [entry for entry in _entries().values() if isinstance(entry, DetectorEntry)]


def entry(path: str | ZooEntry) -> ClassifierEntry | DetectorEntry:
    """Return the entry of a config.

    Args:
        path: path of the config below `configs/`, such as "imagenet/fbnetv3_a.yaml"; ".yaml" is optional.

    Raises:
        UnknownNameError: the zoo has no weights for that config; the message suggests similar names.
    """
    name = _with_suffix(str(path))
    if name not in _entries():
        raise UnknownNameError(f"no weights for '{path}' in the model zoo: {suggest(name, _entries())}")
    return _entries()[name]


def entry_for_arch(arch: str) -> ClassifierEntry:
    """Return the entry whose network has the architecture of that name."""
    entries = _entries_by_arch()
    if arch not in entries:
        raise UnknownNameError(f"no pretrained weights for '{arch}': {suggest(arch, entries)}")
    return entries[arch]


def has_weights(arch: str) -> bool:
    """Return whether the zoo has weights for an architecture."""
    return arch in _entries_by_arch()


@cache
def _entries_by_arch() -> dict[str, ClassifierEntry]:
    return {entry.arch.name: entry for entry in list_classifiers()}


def load_zoo_config(path: str) -> CfgNode:
    """Return a copy of the config at a path below `configs/`, with or without weights in the zoo.

    Configs below `coco/` are detectron2 configs; all others are training configs.

    Raises:
        MissingPackageError: it is a detector's config and detectron2 is not installed; the message says what to run.
        UnknownNameError: no such config; the message suggests similar names.
    """
    name = _with_suffix(path)
    if is_detector(name):
        return detector_config(name)
    if name not in _config_files():
        raise UnknownNameError(f"no config '{path}' in the model zoo: {suggest(name, _config_files())}")
    # Configs are cached, because loading one takes milliseconds; callers get a copy that they may change
    cfg = _load_config(name).clone()
    cfg.defrost()
    return cfg


@cache
def _load_config(name: str) -> CfgNode:
    return load_config(_config_files()[name])


@cache
def _config_files() -> dict[str, Path]:
    """Return the files of all training configs by their path below `configs/`."""
    folder = configs_folder()
    # Leave out architectures and detection configs
    files = {file.relative_to(folder): file for file in folder.rglob("*.yaml")}
    return {path.as_posix(): file for path, file in files.items() if path.parts[0] not in ("archs", "coco")}


def get_checkpoint_url(path: str) -> str:
    """Return the URL of an entry's weights, or the path of weights that ship with the package."""
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
    name = _with_suffix(str(path))
    if is_detector(name):
        return build_detector(name, entry(path).local_weights() if trained else None, device)
    # Build a classifier
    cfg = load_zoo_config(name)
    if not (cfg.MODEL.NUM_CLASSES or trained):
        raise UsageError(
            f"{path}: the number of classes depends on the dataset; use fbnetv3.create_model(..., num_classes=N)"
        )
    model = build_network(
        get_arch(cfg.MODEL.ARCH),
        num_classes=cfg.MODEL.NUM_CLASSES or entry(path).num_classes,
        in_chans=cfg.MODEL.IN_CHANS,
        drop_rate=cfg.MODEL.DROP_RATE,
        drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
    )
    if trained:
        load_weights(model, entry(path).local_weights())
    return model.to(device)


def _with_suffix(path: str) -> str:
    return path if path.endswith(".yaml") else f"{path}.yaml"


class ZooPathHandler(PathHandler):
    """Lets the PathManager open `zoo://` followed by the name of an entry, which stands for its weights."""

    def _get_supported_prefixes(self) -> list[str]:
        return [ZOO_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(entry(path.removeprefix(ZOO_PREFIX)).local_weights())

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return Path(self._get_local_path(path)).open(mode)


PathManager.register_handler(ZooPathHandler(), allow_override=True)
