"""The model zoo: configs, published weights and trained networks, in detectron2's manner."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode
from iopath.common.file_io import PathHandler
from torch import nn

from fbnetv3.arch import ArchDef, configs_folder, cost, get_arch
from fbnetv3.config import load_config
from fbnetv3.data import Preprocessing
from fbnetv3.errors import UnknownNameError, UsageError, suggest
from fbnetv3.model_zoo.detector_entries import DetectorEntry, build_detector, detector_config, is_detector
from fbnetv3.model_zoo.zoo_entry import TrainedConfig
from fbnetv3.modeling import build_network, load_weights
from fbnetv3.training import preprocessing_of
from fbnetv3.utils.downloads import ZOO_PREFIX, PathManager, is_url
from fbnetv3.utils.files import shipped_folder

_FOLDER = shipped_folder("model_zoo", "model_zoo_data")


@dataclass(frozen=True, kw_only=True)
class Entry(TrainedConfig):
    """A classifier's config with trained weights.

    Attributes:
        top1, top5: accuracy in per cent that its source gives; None where it gives none.
    """

    top1: float | None = None
    top5: float | None = None

    @property
    def arch(self) -> ArchDef:
        """The architecture."""
        return get_arch(get_config(self.name).MODEL.ARCH)

    @property
    def in_chans(self) -> int:
        """Channels of the input."""
        return get_config(self.name).MODEL.IN_CHANS

    @property
    def resolution(self) -> int:
        """Side of the input in pixels."""
        return self.preprocessing.resolution

    @property
    def preprocessing(self) -> Preprocessing:
        """What to do to an image first; `.preprocessing.transform()` does it."""
        return preprocessing_of(get_config(self.name), self.arch)

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return self._cost().params

    @property
    def macs(self) -> int:
        """Multiply-adds for an image, counted as in the paper's Table 4."""
        return self._cost().macs

    def _cost(self):
        return cost(self.arch, self.resolution, num_classes=self.num_classes, in_chans=self.in_chans)


@cache
def _entries() -> dict[str, Entry | DetectorEntry]:
    data = yaml.safe_load((_FOLDER / "entries.yaml").read_text())
    entries = {}
    for name, fields in sorted(data.items()):
        kind = DetectorEntry if is_detector(name) else Entry
        entries[name] = kind(name=name, **{**fields, "weights": _address(fields["weights"])})
    return entries


def _address(weights: str) -> str:
    return weights if is_url(weights) else str(_FOLDER / weights)


def list_entries() -> list[Entry]:
    """All classifiers, sorted by name."""
    return [found for found in _entries().values() if isinstance(found, Entry)]


def list_detectors() -> list[DetectorEntry]:
    """All detectors, sorted by name."""
    return [found for found in _entries().values() if isinstance(found, DetectorEntry)]


def entry(path: str | Entry | DetectorEntry) -> Entry | DetectorEntry:
    """The entry of a config's path, such as "imagenet/fbnetv3_a.yaml"; ".yaml" may be left out.

    Raises:
        UnknownNameError: no weights for that config; the text suggests close names.
    """
    name = _with_suffix(str(path))
    if name not in _entries():
        raise UnknownNameError(f"no weights for '{path}' in the model zoo: {suggest(name, _entries())}")
    return _entries()[name]


def entry_for_arch(arch: str) -> Entry:
    """The entry whose network is of that architecture.

    Raises:
        UnknownNameError: there is none; the text suggests close names.
    """
    if arch not in _by_arch():
        raise UnknownNameError(f"no pretrained weights for '{arch}': {suggest(arch, _by_arch())}")
    return _by_arch()[arch]


def has_weights(arch: str) -> bool:
    """Whether there are weights for an architecture."""
    return arch in _by_arch()


@cache
def _by_arch() -> dict[str, Entry]:
    return {found.arch.name: found for found in list_entries()}


def get_config(path: str) -> CfgNode:
    """A training config by its path below `configs/`, with or without weights in the zoo; yours to change.

    Those below `coco/` are detectron2's configs.

    Raises:
        ImportError: a detector's config, and detectron2 is not installed; the text says what to run.
        UnknownNameError: no such config; the text suggests close names.
    """
    name = _with_suffix(path)
    if is_detector(name):
        return detector_config(name)
    if name not in _config_files():
        raise UnknownNameError(f"no config '{path}' in the model zoo: {suggest(name, _config_files())}")
    cfg = _config(name).clone()
    cfg.defrost()
    return cfg


@cache
def _config(name: str) -> CfgNode:
    return load_config(_config_files()[name])


@cache
def _config_files() -> dict[str, Path]:
    folder = configs_folder()
    files = {file.relative_to(folder): file for file in folder.rglob("*.yaml")}
    return {path.as_posix(): file for path, file in files.items() if path.parts[0] not in ("archs", "coco")}


def get_checkpoint_url(path: str) -> str:
    """Address of an entry's weights (a path, for those that come along).

    Raises:
        UnknownNameError: no weights for that config; the text suggests close names.
    """
    return entry(path).weights


def get(path: str | Entry | DetectorEntry, trained: bool = False, device: str | None = None) -> nn.Module:
    """The network of a config, in training mode: a classifier, or below `coco/` a detectron2 model.

    Args:
        path: a config's path below `configs/`, such as "imagenet/fbnetv3_a.yaml", or an entry.
        trained: load the zoo's weights, downloaded on first use; else fresh weights.
        device: where to put it; default: a GPU if there is one, else the CPU.

    Raises:
        UnknownNameError: no such config, or with `trained` no weights for it.
        UsageError: the config leaves the number of classes to the dataset.
        WeightsError: the weights cannot be had; the text names the address and where to put a copy.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if is_detector(name := _with_suffix(str(path))):
        return build_detector(name, entry(path).local_weights() if trained else None, device)
    cfg = get_config(str(path))
    if not (cfg.MODEL.NUM_CLASSES or trained):
        raise UsageError(f"{path}: the number of classes depends on the data: use fbnetv3.create_model")
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
    """Lets the PathManager open `zoo://` and an entry's name: its weights."""

    def _get_supported_prefixes(self) -> list[str]:
        return [ZOO_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        return str(entry(path.removeprefix(ZOO_PREFIX)).local_weights())

    def _open(self, path: str, mode: str = "rb", buffering: int = -1, **kwargs):
        return Path(self._get_local_path(path)).open(mode)


PathManager.register_handler(ZooPathHandler(), allow_override=True)
