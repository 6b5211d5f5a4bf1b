"""One-line summary of a run, logged when it starts."""

from __future__ import annotations

import logging

import torch
from torch import nn

from fbnetv3.training.processes.distributed import ProcessGroup

logger = logging.getLogger(__name__)


def log_summary(
    name: str, model: nn.Module, dataset: str, details: list[str], device: torch.device, group: ProcessGroup
) -> None:
    """Log the network, data, length and device of a run.

    Args:
        name: name of the architecture.
        model: network whose parameters are counted.
        dataset: name of the dataset.
        details: further facts, such as "24 training images".
        device: device of the network.
        group: processes that train the network.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    # On a CPU, the number of threads determines the speed
    where = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else str(device)
    if group.size > 1:
        where = f"{group.size} processes, {where}"
    logger.info("%s (%.2f M parameters) on %s: %s", name, parameters, dataset, ", ".join([*details, where]))
