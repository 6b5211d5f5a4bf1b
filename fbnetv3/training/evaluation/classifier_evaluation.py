"""Top-1, top-5 and loss of a classifier on a dataset."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fbnetv3.data import Batch, CorruptImageCounter
from fbnetv3.data.loader import memory_format
from fbnetv3.errors import DataError, WeightsError
from fbnetv3.training.evaluation.multi_label_metrics import multi_label_metrics
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, ProcessGroup
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt
from fbnetv3.training.reports.predictions import PredictionRecorder
from fbnetv3.utils.text import first_few


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    *,
    channels_last: bool = True,
    corrupt_images: CorruptImageCounter | None = None,
    progress: bool = True,
    group: ProcessGroup = SINGLE_PROCESS,
    recorder: PredictionRecorder | None = None,
) -> dict[str, float]:
    """Evaluate a classifier in evaluation mode, and restore its mode afterwards.

    Args:
        model: classifier that returns logits (N, classes).
        batches: images and their targets: class indices (N,), or 1 for each label of an image, (N, classes).
        device: device of the model.
        channels_last: memory format of the images.
        corrupt_images: counter of images that cannot be read; by default, none are allowed.
        progress: whether to show a progress bar on a terminal.
        group: processes among which the images are divided.
        recorder: recorder that keeps this process's predictions, for a report.

    Returns:
        "top1" and "top5" in percent (top5 for more than five classes), "loss" (cross-entropy) and "images", the
        number of images. For targets (N, classes), as of several labels per image: "map" and "f1" in percent, "loss"
        (binary cross-entropy) and "images".

    Raises:
        DataError: more images than allowed are corrupt, or no image could be read.
        WeightsError: logits are NaN or infinite; the message names the first image.
    """
    corrupt_images = corrupt_images or CorruptImageCounter(0)
    errors: list[str] = []
    totals = _Totals(device)
    if recorder is not None:
        recorder.start()
    was_training = model.training
    model.eval()
    try:
        for batch in tqdm(batches, desc="evaluation", leave=False, disable=None if progress else True):
            errors += batch.errors
            # With several processes, one that stopped here would leave the others waiting
            if group.size == 1:
                check_interrupt()
                corrupt_images.add(batch.errors)
            if len(batch.targets):
                images, targets = batch.to(device, memory_format(channels_last))
                logits = model(images)
                totals.add(batch.names, logits, targets)
                if recorder is not None:
                    recorder.add(batch, logits, targets)
    finally:
        model.train(was_training)
    # Several processes stop here together
    if agree_on_interrupt(group):
        check_interrupt()
    corrupt_images.add([message for messages in group.gather(errors) for message in messages])
    return totals.results(group)


class _Totals:
    """Totals over the images of this process, on the device until the end."""

    def __init__(self, device: torch.device) -> None:
        self.names: list[str] = []
        self.finite = [torch.empty(0, dtype=torch.bool, device=device)]  # whether each image's logits are
        self.sums = torch.zeros(3, device=device)  # top-1 and top-5 hits, loss
        self.num_classes = 0
        # Probabilities and targets of images with several labels
        self.labels: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, names: list[str], logits: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        self.names += names
        self.finite.append(logits.isfinite().all(1))
        self.num_classes = logits.shape[1]
        if targets.ndim == 2:
            self.sums[2] += _sum_binary_losses(logits, targets)
            self.labels.append((logits.float().sigmoid().cpu().numpy(), targets.cpu().numpy()))
        else:
            self.sums += _top1_top5_and_loss(logits, targets)

    def results(self, group: ProcessGroup) -> dict[str, float]:
        """Return the metrics over the images of all processes."""
        _check_finite_logits(self.names, torch.cat(self.finite), group)
        correct1, correct5, loss, num_images = group.sum(*self.sums.tolist(), len(self.names))
        if not num_images:
            raise DataError("no validation image could be read; check DATA.ROOT")
        results = {"loss": loss / num_images, "images": int(num_images)}
        labels = [batch for part in group.gather(self.labels) for batch in part]
        if labels:
            probabilities, targets = (np.concatenate(arrays) for arrays in zip(*labels, strict=True))
            return {**multi_label_metrics(probabilities, targets), **results}
        results["top1"] = 100 * correct1 / num_images
        if max(group.gather(self.num_classes)) > 5:  # a process may have seen no images
            results["top5"] = 100 * correct5 / num_images
        return results


def _check_finite_logits(names: list[str], finite: Tensor, group: ProcessGroup) -> None:
    """Raise a WeightsError in all processes if any image's logits are not finite."""
    broken = [name for name, is_finite in zip(names, finite.tolist(), strict=True) if not is_finite]
    broken = [name for names_of_rank in group.gather(broken) for name in names_of_rank]
    if broken:
        raise WeightsError(
            f"{first_few(broken)}: the network's logits are NaN or infinite; its weights have diverged, or "
            "INPUT.MEAN and INPUT.STD are not those of its training"
        )


def _sum_binary_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum over images of their mean binary cross-entropy."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return losses.mean(1).sum()


def _top1_top5_and_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return a batch's numbers of top-1 and top-5 hits, and its total loss."""
    correct = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
    loss = F.cross_entropy(logits.float(), targets, reduction="sum")
    return torch.stack([correct[:, 0].sum(), correct.any(1).sum(), loss])
