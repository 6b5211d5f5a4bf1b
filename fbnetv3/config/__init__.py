"""Training configs (yacs)."""

from fbnetv3.config.config import check_config, get_cfg, load_config
from fbnetv3.config.kinds import is_detection_config

__all__ = ["check_config", "get_cfg", "is_detection_config", "load_config"]
