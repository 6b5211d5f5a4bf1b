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
    """Log network, data, length and device of a run.

    Args:
        name: of the architecture.
        model: its parameters are counted.
        dataset: its name.
        details: further facts, such as "24 training images".
        device: where it is trained.
        group: the processes that train it.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    # The number of threads decides the speed on a CPU
    where = f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else str(device)
    if group.size > 1:
        where = f"{group.size} processes, {where}"
    logger.info("%s (%.2f M parameters) on %s: %s", name, parameters, dataset, ", ".join([*details, where]))
