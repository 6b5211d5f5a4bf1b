"""The model zoo: configs with published or trained weights, modeled on detectron2's model zoo.

`get("imagenet/fbnetv3_a.yaml", trained=True)` builds a network, `list_classifiers()` and `list_detectors()` return the
entries that have weights.
"""

from fbnetv3.model_zoo.pretrained_cfg import pretrained_cfg
from fbnetv3.model_zoo.zoo import (
    ClassifierEntry,
    DetectorEntry,
    default_entry,
    entries_for_arch,
    entry,
    entry_for_arch,
    get,
    get_checkpoint_url,
    has_weights,
    list_classifiers,
    list_detectors,
)
from fbnetv3.model_zoo.zoo import load_zoo_config as get_config

__all__ = [
    "ClassifierEntry",
    "DetectorEntry",
    "default_entry",
    "entries_for_arch",
    "entry",
    "entry_for_arch",
    "get",
    "get_checkpoint_url",
    "get_config",
    "has_weights",
    "list_classifiers",
    "list_detectors",
    "pretrained_cfg",
]
