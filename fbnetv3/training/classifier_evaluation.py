"""Top-1, top-5 and loss of a classifier on a dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fbnetv3.data import Batch, CorruptImageCounter
from fbnetv3.errors import DataError
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, ProcessGroup
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt


class _Totals:
    """Sums over the images so far, on the device until the end."""

    def __init__(self, device: torch.device) -> None:
        self.num_images = 0
        self.num_classes = 0
        self.correct1 = torch.zeros((), device=device)
        self.correct5 = torch.zeros((), device=device)
        self.loss = torch.zeros((), device=device)

    def add(self, logits: Tensor, targets: Tensor) -> None:
        self.num_images += len(targets)
        self.num_classes = logits.shape[1]
        # Whether each of the five highest logits is the target: (N, 5)
        correct = logits.topk(min(5, self.num_classes)).indices == targets[:, None]
        self.correct1 += correct[:, 0].sum()
        self.correct5 += correct.any(1).sum()
        self.loss += F.cross_entropy(logits.float(), targets, reduction="sum")

    def results(self, group: ProcessGroup) -> dict[str, float]:
        # A process may have seen no images
        num_classes = max(group.gather(self.num_classes))
        correct1, correct5, loss, num_images = group.sum(
            float(self.correct1), float(self.correct5), float(self.loss), self.num_images
        )
        if not num_images:
            raise DataError("no validation image could be read: check DATA.ROOT")
        results = {"top1": 100 * correct1 / num_images, "loss": loss / num_images, "images": int(num_images)}
        if num_classes > 5:
            results["top5"] = 100 * correct5 / num_images
        return results


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
    """Evaluate a classifier. The model is put into evaluation mode and its mode is restored afterwards.

    Args:
        model: classifier that returns logits (N, classes).
        batches: images and class indices.
        device: device of the model.
        channels_last: memory format of the images.
        corrupt_images: counter of images that cannot be read; by default, none are allowed.
        progress: whether to show a progress bar on a terminal.
        group: the processes among which the images are divided.

    Returns:
        "top1" and "top5" in percent (top5 for more than five classes), "loss" (cross-entropy) and "images", the
        number of images.

    Raises:
        DataError: no image could be read, or more are corrupt than `corrupt_images` allows.
    """
    corrupt_images = corrupt_images or CorruptImageCounter(0)
    corrupt: list[str] = []
    totals = _Totals(device)
    with evaluation_mode(model):
        for batch in tqdm(batches, desc="evaluation", leave=False, disable=None if progress else True):
            corrupt += batch.corrupt
            # With several processes, one that stopped here would leave the others waiting
            if group.size == 1:
                check_interrupt()
                corrupt_images.add(batch.corrupt)
            if len(batch.targets):
                images, targets = batch.to(device, memory_format(channels_last))
                totals.add(model(images), targets)
    # Several processes stop here together
    if agree_on_interrupt(group):
        check_interrupt()
    corrupt_images.add([message for messages in group.gather(corrupt) for message in messages])
    return totals.results(group)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode within the block, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return torch's memory format for images."""
    return torch.channels_last if channels_last else torch.contiguous_format
