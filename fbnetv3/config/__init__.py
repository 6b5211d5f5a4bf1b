"""Training configs and recipes. Does not import torch."""

from fbnetv3.config.defaults import get_cfg
from fbnetv3.config.loading import check_config, is_detection_config, load_config

__all__ = ["check_config", "get_cfg", "is_detection_config", "load_config"]
