"""The device of a run, and what its processes do together there."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode

from fbnetv3.errors import UsageError
from fbnetv3.modeling.torch_device import find_device, parse_device
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, ProcessGroup


def select_device(name: str, group: ProcessGroup = SINGLE_PROCESS) -> torch.device:
    """Return the device that DEVICE names; "auto" is a GPU if there is one. Each process uses a GPU of its own."""
    device = parse_device(name, "DEVICE")
    if device.type == "cuda" and group.size > 1:
        device = torch.device("cuda", group.gpu_index)
    return find_device(device, "DEVICE")


def synchronizes_batchnorm(cfg: CfgNode, group: ProcessGroup) -> bool:
    """Return whether MODEL.SYNC_BN has an effect: with several processes that train the statistics.

    Raises:
        UsageError: MODEL.COMPILE is set, too.
    """
    # Quantization-aware training keeps the statistics constant
    if not cfg.MODEL.SYNC_BN or group.size == 1 or cfg.QAT.ENABLED:
        return False
    if cfg.MODEL.COMPILE:
        raise UsageError(
            "MODEL.COMPILE True: torch.compile would split the network at each synchronized BatchNorm, in which "
            "processes wait for one another; set MODEL.COMPILE or MODEL.SYNC_BN to False"
        )
    return True
