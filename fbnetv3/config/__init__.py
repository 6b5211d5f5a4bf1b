"""Training configs (yacs)."""

from fbnetv3.config.config import check_config, get_cfg, load_config

__all__ = ["check_config", "get_cfg", "load_config"]
