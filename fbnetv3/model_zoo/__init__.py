"""Published and trained networks: `list()`, `get_config()`, `get_checkpoint_url()`, `get(path, trained=True)`."""

from fbnetv3.model_zoo.detector_entries import DetectorEntry
from fbnetv3.model_zoo.zoo import Entry, entry, entry_for_arch, get, get_checkpoint_url, get_config, has_weights
from fbnetv3.model_zoo.zoo import list_detectors as detectors
from fbnetv3.model_zoo.zoo import list_entries as list

__all__ = [
    "DetectorEntry",
    "Entry",
    "detectors",
    "entry",
    "entry_for_arch",
    "get",
    "get_checkpoint_url",
    "get_config",
    "has_weights",
    "list",
]
