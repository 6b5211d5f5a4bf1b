"""What a checkpoint records about its detector, so that using it needs neither its config nor its annotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton, skeleton_from_dict
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.safe_loading import load_checkpoint_file
from fbnetv3.utils.downloads import ZOO_PREFIX, is_url, local_path
from fbnetv3.utils.text import describe_error

_CONFIG_KEY = "detection_config"  # distinguishes the record of a detector from that of a classifier


@dataclass(frozen=True)
class DetectorRecord:
    """A detector as its checkpoint describes it."""

    config: str  # all keys of the training config, as YAML
    arch: str  # name of the architecture
    definition: str  # the architecture as YAML, or a name that only torchvision defines
    classes: tuple[
        str, ...
    ]  # names of the classes, by class index; empty if the dataset does not name them
    category_ids: tuple[int | float | str, ...]  # ids of the classes in results files
    preprocessing: dict[str, Any] = field(
        default_factory=dict
    )  # "format", "mean", "std", "min_size", "max_size"
    data: dict[str, Any] = field(default_factory=dict)  # fingerprints of the datasets, by name
    skeleton: KeypointSkeleton | None = None  # of a detector of keypoints

    def to_metadata(self) -> dict[str, Any]:
        """Return the record as plain values; `detector_record_from_metadata` reads them."""
        return {
            _CONFIG_KEY: self.config,
            "arch": self.arch,
            "definition": self.definition,
            "classes": list(self.classes),
            "category_ids": list(self.category_ids),
            "preprocessing": self.preprocessing,
            "data": self.data,
            "keypoints": self.skeleton.to_dict() if self.skeleton else None,
        }


def read_detector_record(source: str) -> DetectorRecord | None:
    """Read the record of weights: a file, a URL, or a `zoo://` entry. Return None if they have none.

    Raises:
        WeightsError: the file is missing or corrupt.
    """
    # The released detectors have none; detectron2 reads other schemes, such as detectron2://
    if source.startswith(ZOO_PREFIX) or ("://" in source and not is_url(source)):
        return None
    checkpoint = load_checkpoint_file(local_path(source))
    return detector_record_from_metadata(checkpoint, source) if isinstance(checkpoint, Mapping) else None


def detector_record_from_metadata(checkpoint: Mapping[str, Any], source: str) -> DetectorRecord | None:
    """Return the record in a checkpoint of a detector's run, or in its weights; None if it has none."""
    metadata = checkpoint.get("metadata")
    if not isinstance(metadata, Mapping) or _CONFIG_KEY not in metadata:
        return None
    try:
        classes = tuple(map(str, metadata["classes"]))
        category_ids = tuple(metadata["category_ids"])
        if len(classes) != len(category_ids):
            raise ValueError(f"{len(classes)} classes but {len(category_ids)} category ids")
        return DetectorRecord(
            str(metadata[_CONFIG_KEY]),
            str(metadata["arch"]),
            str(metadata["definition"]),
            classes,
            category_ids,
            dict(metadata.get("preprocessing", {})),
            dict(metadata.get("data", {})),
            skeleton_from_dict(metadata.get("keypoints")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{source}: what it records about its detector cannot be read ({describe_error(error)})"
        ) from None
