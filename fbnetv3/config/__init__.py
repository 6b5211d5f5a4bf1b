"""Training configs (yacs)."""

from fbnetv3.config.kinds_to_merge import is_detection_config
from fbnetv3.config.loading import check_config, get_cfg, load_config

__all__ = ["check_config", "get_cfg", "is_detection_config", "load_config"]
