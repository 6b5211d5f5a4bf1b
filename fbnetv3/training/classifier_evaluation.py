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
from fbnetv3.errors import DataError
from fbnetv3.training.evaluation.multi_label_metrics import multi_label_metrics
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, ProcessGroup
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt


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

    Returns:
        "top1" and "top5" in percent (top5 for more than five classes), "loss" (cross-entropy) and "images", the
        number of images. For targets (N, classes), as of several labels per image: "map" and "f1" in percent, "loss"
        (binary cross-entropy) and "images".

    Raises:
        DataError: more images than allowed are corrupt, or no image could be read.
    """
    corrupt_images = corrupt_images or CorruptImageCounter(0)
    errors: list[str] = []
    # With several labels per image: probabilities and targets of each batch
    labels: list[tuple[np.ndarray, np.ndarray]] = []
    num_images = num_classes = 0
    sums = torch.zeros(3, device=device)  # on the device until the end
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
                if targets.ndim == 2:
                    sums[2] += _sum_binary_losses(logits, targets)
                    labels.append((logits.float().sigmoid().cpu().numpy(), targets.cpu().numpy()))
                else:
                    sums += _top1_top5_and_loss(logits, targets)
                num_images += len(targets)
                num_classes = logits.shape[1]
    finally:
        model.train(was_training)
    # Several processes stop here together
    if agree_on_interrupt(group):
        check_interrupt()
    corrupt_images.add([message for messages in group.gather(errors) for message in messages])
    correct1, correct5, loss, total_images = group.sum(*sums.tolist(), num_images)
    if not total_images:
        raise DataError("no validation image could be read; check DATA.ROOT")
    results = {"loss": loss / total_images, "images": int(total_images)}
    all_labels = [batch for part in group.gather(labels) for batch in part]
    if all_labels:
        probabilities, targets = (np.concatenate(arrays) for arrays in zip(*all_labels, strict=True))
        return {**multi_label_metrics(probabilities, targets), **results}
    results = {"top1": 100 * correct1 / total_images, **results}
    if max(group.gather(num_classes)) > 5:  # a process may have seen no images
        results["top5"] = 100 * correct5 / total_images
    return results


def _sum_binary_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum over images of their mean binary cross-entropy."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return losses.mean(1).sum()


def _top1_top5_and_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return a batch's numbers of top-1 and top-5 hits, and its total loss."""
    correct = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
    loss = F.cross_entropy(logits.float(), targets, reduction="sum")
    return torch.stack([correct[:, 0].sum(), correct.any(1).sum(), loss])
