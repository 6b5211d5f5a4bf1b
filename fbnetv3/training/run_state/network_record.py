"""What a checkpoint records about its classifier, so that using the network needs neither its config nor its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import yaml

from fbnetv3.arch import ArchDef, dump_arch
from fbnetv3.arch.arch_files import arch_from_dict
from fbnetv3.data import Preprocessing
from fbnetv3.data.preprocessing_values import preprocessing_from_dict, preprocessing_to_dict
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.qat.quantized_layers import LearnedInt8
from fbnetv3.modeling.safe_loading import load_checkpoint_file
from fbnetv3.modeling.torchvision_models import TORCHVISION_PREFIX, TorchvisionArch
from fbnetv3.utils.downloads import ZOO_PREFIX, local_path
from fbnetv3.utils.text import describe_error

AnyArch = ArchDef | TorchvisionArch

_REQUIRED = {"definition", "in_chans"}


@dataclass(frozen=True)
class NetworkRecord:
    """A classifier as its checkpoint describes it."""

    arch: AnyArch
    in_chans: int
    classes: tuple[str, ...]
    """Names of the outputs; empty in checkpoints of version 1, which do not have them."""
    preprocessing: Preprocessing
    config: dict[str, Any] = field(default_factory=dict)
    """All keys of the training config, with dotted names; only some in checkpoints of version 1."""
    multi_label: bool = False
    """Whether images have several labels: the probabilities of the classes are then independent."""
    data: dict[str, Any] = field(default_factory=dict)
    """Fingerprints of the splits "train" and "val", see `data_fingerprint`; empty if unknown."""
    ranges: dict[str, list[float]] = field(default_factory=dict)
    """Ranges from quantization-aware training, see `read_ranges`; the checkpoint's hook writes them."""

    @property
    def learned_int8(self) -> LearnedInt8 | None:
        """What quantization-aware training has learned; None if the network was trained without it."""
        return LearnedInt8(self.ranges, self.config.get("QAT.WEIGHT_BITS", 8)) if self.ranges else None

    def to_metadata(self) -> dict[str, Any]:
        """Return the record as plain values; `record_from_metadata` reads them."""
        return {
            "arch": self.arch.name,
            "definition": arch_identity(self.arch),
            "num_classes": len(self.classes),
            "in_chans": self.in_chans,
            "classes": list(self.classes),
            "preprocessing": preprocessing_to_dict(self.preprocessing),
            "run_config": self.config,
            "multi_label": self.multi_label,
            "data": self.data,
        }


def arch_identity(arch: AnyArch) -> str:
    """Return text that identifies an architecture by its content, for comparisons and checkpoints."""
    return dump_arch(arch) if isinstance(arch, ArchDef) else arch.name


def read_network_record(source: str) -> NetworkRecord | None:
    """Read the record of weights: a file, a URL, or a `zoo://` entry. Return None if they have none.

    Raises:
        WeightsError: the file is missing or corrupt.
    """
    if source.startswith(ZOO_PREFIX):
        model_zoo = import_module("fbnetv3.model_zoo")  # by name, because it is a higher layer
        entry = model_zoo.entry(source.removeprefix(ZOO_PREFIX))
        return getattr(entry, "record", None)  # those of detectors have none
    checkpoint = load_checkpoint_file(local_path(source))
    return record_from_metadata(checkpoint, source) if isinstance(checkpoint, Mapping) else None


def record_from_metadata(checkpoint: Mapping[str, Any], source: str) -> NetworkRecord | None:
    """Return the record in a checkpoint of a run, or in its weights; None if it has none."""
    # Checkpoints to resume from keep it apart from the state of the training
    metadata = checkpoint.get("metadata", checkpoint)
    if not isinstance(metadata, Mapping) or not metadata.keys() >= _REQUIRED:
        return None
    try:
        arch = _parse_arch(metadata["definition"])
        config = metadata.get("run_config") or _config_of_version_1(metadata)
        preprocessing = (
            preprocessing_from_dict(metadata["preprocessing"])
            if "preprocessing" in metadata
            else _preprocessing_of_version_1(config, arch)
        )
        classes = tuple(map(str, metadata.get("classes", ())))
        num_classes = metadata.get("num_classes", len(classes))
        if classes and num_classes != len(classes):
            raise ValueError(f"{len(classes)} class names for {num_classes} outputs")
        multi_label = bool(metadata.get("multi_label"))
        return NetworkRecord(
            arch,
            int(metadata["in_chans"]),
            classes,
            preprocessing,
            dict(config),
            multi_label,
            dict(metadata.get("data", {})),
            {str(name): [*map(float, ends)] for name, ends in metadata.get("ranges", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise WeightsError(
            f"{source}: what it records about its network cannot be read ({describe_error(error)})"
        ) from None


def _parse_arch(definition: str) -> AnyArch:
    if definition.startswith(TORCHVISION_PREFIX):
        return TorchvisionArch(definition)
    return arch_from_dict(yaml.safe_load(definition))


def _config_of_version_1(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config keys in the run's fingerprint, without those that it replaces by digests."""
    config = metadata.get("config", {})
    return {key: value for key, value in config.items() if not key.startswith("DISTILL.")}


def _preprocessing_of_version_1(config: Mapping[str, Any], arch: AnyArch) -> Preprocessing:
    resolution = config["INPUT.RESOLUTION"] or arch.resolution
    return Preprocessing(
        resolution,
        config["INPUT.RESIZE"] or round(resolution * arch.resize / arch.resolution),
        tuple(config["INPUT.MEAN"]),
        tuple(config["INPUT.STD"]),
        config["INPUT.INTERPOLATION"],
    )
