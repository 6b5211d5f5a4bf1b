"""Batch size, epochs and warmup that fit the number of training images."""

from __future__ import annotations

from dataclasses import dataclass

from fvcore.common.config import CfgNode

from fbnetv3.config import check_config

# A step on fewer images has noisy BatchNorm statistics; more than 64 do not train better with so few images
MIN_BATCH_SIZE, MAX_BATCH_SIZE = 8, 64
# Several steps per epoch, so that the batches of an epoch differ
_MIN_STEPS_PER_EPOCH = 5
# BiT's HyperRule (Kolesnikov et al., "Big Transfer", Sec. 3.3) fine-tunes for 500 steps on up to 20,000 images
_MIN_STEPS = 500
_MIN_EPOCHS, _MAX_EPOCHS = 20, 100
_WARMUP_FRACTION = 0.1


@dataclass(frozen=True)
class RunLength:
    """Length of a run and of its steps."""

    batch_size: int  # images per step, over all processes
    epochs: int
    warmup_epochs: float


def fit_run_length(
    num_images: int, num_processes: int = 1, batch_size: int = 0, epochs: int = 0
) -> RunLength:
    """Choose the length of a fine-tuning run from the number of training images.

    - The batch is the largest power of two in [8, 64] that leaves five steps per epoch, and at most all images. Several
      processes get at least two images each, and equal parts.
    - The run has at least 500 steps and 20 epochs, but at most 100 epochs.
    - A tenth of the run is warmup.

    Args:
        num_images: number of training images.
        num_processes: number of processes that share a batch.
        batch_size: batch size to use instead of the first rule; 0 for the rule.
        epochs: number of epochs to use instead of the second rule; 0 for the rule.
    """
    if not batch_size:
        batch_size = MIN_BATCH_SIZE
        while 2 * batch_size <= min(MAX_BATCH_SIZE, num_images / _MIN_STEPS_PER_EPOCH):
            batch_size *= 2
        # Equal parts for the processes; the loader refuses datasets that are too small for this
        batch_size = max(min(batch_size, num_images) // num_processes, 2) * num_processes
    if not epochs:
        steps_per_epoch = max(1, num_images // batch_size)
        epochs = min(_MAX_EPOCHS, max(_MIN_EPOCHS, -(-_MIN_STEPS // steps_per_epoch)))
    return RunLength(batch_size, epochs, round(_WARMUP_FRACTION * epochs, 2))


def fit_config(cfg: CfgNode, num_images: int, num_processes: int = 1) -> CfgNode:
    """Return a config in which `fit_run_length` has replaced SOLVER.BATCH_SIZE 0, EPOCHS 0 and WARMUP_EPOCHS -1.

    Raises:
        UsageError: the values contradict others.
    """
    solver = cfg.SOLVER
    if solver.BATCH_SIZE and solver.EPOCHS and solver.WARMUP_EPOCHS >= 0:
        return cfg
    length = fit_run_length(num_images, num_processes, solver.BATCH_SIZE, solver.EPOCHS)
    fitted = cfg.clone()
    fitted.defrost()
    fitted.SOLVER.BATCH_SIZE = length.batch_size
    fitted.SOLVER.EPOCHS = length.epochs
    if solver.WARMUP_EPOCHS < 0:
        fitted.SOLVER.WARMUP_EPOCHS = length.warmup_epochs
    check_config(fitted)
    fitted.freeze()
    return fitted


def describe_fitted(cfg: CfgNode, fitted: CfgNode) -> str:
    """Return the keys that `fit_config` has replaced, with their values; "" if there are none."""
    keys = ("BATCH_SIZE", "EPOCHS", "WARMUP_EPOCHS")
    return ", ".join(
        f"SOLVER.{key} {fitted.SOLVER[key]}" for key in keys if fitted.SOLVER[key] != cfg.SOLVER[key]
    )
