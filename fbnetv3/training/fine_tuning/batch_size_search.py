"""Find the largest batch whose training step fits in a GPU's memory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from fbnetv3.data import Batch
from fbnetv3.errors import UsageError, is_out_of_memory
from fbnetv3.training.builders import Inputs, is_multi_label
from fbnetv3.training.devices.autocast_precision import autocast_dtype
from fbnetv3.training.fine_tuning.freezing import freeze
from fbnetv3.training.losses import Objective
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.solver import build_mixup, optimizer_from_config, schedule_from_config
from fbnetv3.training.trainer import Trainer
from fbnetv3.utils.random_state import forked_random_state

logger = logging.getLogger(__name__)


def halve_until_it_fits(run_step: Callable[[int], None], largest: int, smallest: int) -> int:
    """Return the first of `largest`, its half and so on for which `run_step` does not run out of memory.

    Return 0 if not even a batch of `smallest` images or its double fits.
    """
    batch_size = largest
    while batch_size >= smallest:
        try:
            run_step(batch_size)
            return batch_size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            batch_size //= 2
        # Outside the handler, whose traceback keeps the step's tensors alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return 0


def find_batch_size(
    cfg: CfgNode,
    model: nn.Module,
    objective: Objective,
    inputs: Inputs,
    device: torch.device,
    group: ProcessGroup,
) -> int:
    """Return SOLVER.BATCH_SIZE, halved until two training steps fit in the memory of every process's GPU.

    The steps run on blank images and a copy of the model, so that model and random state stay as they are. On a CPU, no
    steps are run: it has no memory of its own for batches.

    Args:
        cfg: config with the values that fit the dataset.
        model: network on its device, before its norms are synchronized.
        objective: objective of the training.
        inputs: datasets and loaders for this config.
        device: device of the model.
        group: processes that share a batch.
    """
    if not _has_own_memory(device):
        logger.warning("SOLVER.FIT_MEMORY has no effect on %s: it only limits batches on GPUs", device)
        return cfg.SOLVER.BATCH_SIZE
    # Images that the GPU keeps take their memory first
    for loader in (inputs.train_loader, inputs.val_loader):
        loader.read_first(1)

    def run_steps(batch_size: int) -> None:
        network = copy.deepcopy(model)
        trainer = Trainer(
            network,
            objective,
            optimizer_from_config(cfg, network),
            schedule_from_config(cfg),
            inputs.train_loader,
            lr=0.0,
            epochs=1,
            device=device,
            channels_last=cfg.MODEL.CHANNELS_LAST,
            mixup=build_mixup(cfg, len(inputs.train.classes)),
            precision=autocast_dtype(cfg.SOLVER.PRECISION, device),
            accumulate=cfg.SOLVER.ACCUMULATE,
            frozen=freeze(network, cfg.MODEL.FREEZE, norms=cfg.MODEL.FREEZE_NORM),
        )
        trainer.set_training_mode()
        batch = _blank_batch(inputs, batch_size, cfg.MODEL.IN_CHANS)
        for _ in range(2):  # the first step allocates the optimizer's state
            trainer.step(batch)
            trainer.check_loss()

    with forked_random_state(device):
        largest = cfg.SOLVER.BATCH_SIZE // group.size
        smallest = min(2 * cfg.SOLVER.ACCUMULATE, largest)
        own = halve_until_it_fits(run_steps, largest, smallest)
    # All processes raise together
    batch_size = min(group.gather(own))
    if not batch_size:
        raise UsageError(
            f"SOLVER.FIT_MEMORY: not even {smallest} images fit in the GPU's memory: lower INPUT.RESOLUTION, "
            "or choose a smaller network"
        )
    return batch_size * group.size


def _has_own_memory(device: torch.device) -> bool:
    return device.type == "cuda"


def _blank_batch(inputs: Inputs, batch_size: int, channels: int) -> Batch:
    """Return black images of the size that the loader returns, all of the first class."""
    side = inputs.train_side
    targets: Tensor = torch.zeros(batch_size, dtype=torch.long)
    if is_multi_label(inputs.train):
        targets = torch.zeros(batch_size, len(inputs.train.classes))
    images = torch.zeros(batch_size, channels, side, side, dtype=torch.uint8)
    return Batch(images, targets, range(batch_size), preprocessing=inputs.preprocessing)
