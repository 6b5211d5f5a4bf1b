"""Top-1, top-5 and loss of classifiers on a dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fbnetv3.data import Batch, CorruptImageCounter
from fbnetv3.data.batches.device_copies import HostTensors, prefetch_to_device
from fbnetv3.data.loader import memory_format
from fbnetv3.errors import DataError, WeightsError
from fbnetv3.training.evaluation.inference_precision import inference_autocast
from fbnetv3.training.evaluation.multi_label_metrics import multi_label_metrics
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, ProcessGroup
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt
from fbnetv3.training.reports.predictions import PredictionRecorder
from fbnetv3.utils.text import first_few


def evaluate(
    model: nn.Module, batches: Iterable[Batch], device: torch.device, **options: Any
) -> dict[str, float]:
    """Evaluate one classifier: return its results of `evaluate_networks`, which describes the arguments and errors."""
    return evaluate_networks([model], batches, device, **options)[0]


@torch.no_grad()
def evaluate_networks(
    models: Sequence[nn.Module],
    batches: Iterable[Batch],
    device: torch.device,
    *,
    channels_last: bool = True,
    precision: torch.dtype = torch.float32,
    corrupt_images: CorruptImageCounter | None = None,
    progress: bool = True,
    group: ProcessGroup = SINGLE_PROCESS,
    recorder: PredictionRecorder | None = None,
) -> list[dict[str, float]]:
    """Evaluate classifiers in one pass over the images, in evaluation mode, and restore their modes afterwards.

    Args:
        models: classifiers that return logits (N, classes).
        batches: images and their targets: class indices (N,), or 1 for each label of an image, (N, classes).
        device: device of the models.
        channels_last: memory format of the images.
        precision: dtype of autocast on a GPU; CPUs compute in float32.
        corrupt_images: counter of images that cannot be read; by default, none are allowed.
        progress: whether to show a progress bar on a terminal.
        group: processes among which the images are divided.
        recorder: recorder that keeps this process's predictions of the last classifier, for a report.

    Returns:
        For each classifier "top1" and "top5" in percent (top5 for more than five classes), "loss" (cross-entropy) and
        "images", the number of images. For targets (N, classes), as of several labels per image: "map" and "f1" in
        percent, "loss" (binary cross-entropy) and "images".

    Raises:
        DataError: more images than allowed are corrupt, or no image could be read.
        WeightsError: logits are NaN or infinite; the message names the first image.
    """
    corrupt_images = corrupt_images or CorruptImageCounter(0)
    errors: list[str] = []
    totals = [_Totals(device) for _ in models]
    if recorder is not None:
        recorder.start()
    bar = tqdm(batches, desc="evaluation", leave=False, disable=None if progress else True)
    with _evaluation_mode(models), inference_autocast(device, precision):
        for batch in prefetch_to_device(bar, device):
            errors += batch.errors
            # With several processes, one that stopped here would leave the others waiting
            if group.size == 1:
                check_interrupt()
                corrupt_images.add(batch.errors)
            if not len(batch.targets):
                continue
            images, targets = batch.to(device, memory_format(channels_last))
            for model, model_totals in zip(models, totals, strict=True):
                logits = model(images)
                model_totals.add(batch, logits, targets)
            if recorder is not None:
                recorder.add(batch, logits, targets)
    # Several processes stop here together
    if agree_on_interrupt(group):
        check_interrupt()
    corrupt_images.add([message for messages in group.gather(errors) for message in messages])
    return [model_totals.results(group) for model_totals in totals]


@contextlib.contextmanager
def _evaluation_mode(models: Sequence[nn.Module]) -> Iterator[None]:
    """Put models in evaluation mode for the block, and restore the mode of each afterwards."""
    modes = [model.training for model in models]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


class _Totals:
    """Totals over the images of this process, on the device until the end."""

    def __init__(self, device: torch.device) -> None:
        self.images: list[tuple[int, Callable[[int], str]]] = []  # index, and function that names it
        self.finite = [torch.empty(0, dtype=torch.bool, device=device)]  # whether each image's logits are
        self.sums = torch.zeros(3, device=device)  # top-1 and top-5 hits, loss
        self.num_classes = 0
        self.labels = HostTensors()  # probabilities and targets of images with several labels

    def add(self, batch: Batch, logits: Tensor, targets: Tensor) -> None:
        """Add a batch."""
        self.images += [(int(index), batch.image_name) for index in batch.indices]
        self.finite.append(logits.isfinite().all(1))
        self.num_classes = logits.shape[1]
        if targets.ndim == 2:
            self.sums[2] += _sum_binary_losses(logits, targets)
            self.labels.add(torch.stack([logits.float().sigmoid(), targets.float()]))
        else:
            self.sums += _top1_top5_and_loss(logits, targets)

    def results(self, group: ProcessGroup) -> dict[str, float]:
        """Return the metrics over the images of all processes."""
        self._check_finite_logits(group)
        correct1, correct5, loss, num_images = group.sum(*self.sums.tolist(), len(self.images))
        if not num_images:
            raise DataError("no validation image could be read; check DATA.ROOT")
        results = {"loss": loss / num_images, "images": int(num_images)}
        own_labels = self.labels.concatenate(dim=1).numpy() if self.labels else None
        labels = [part for part in group.gather(own_labels) if part is not None]
        if labels:
            return {**multi_label_metrics(*np.concatenate(labels, axis=1)), **results}
        results["top1"] = 100 * correct1 / num_images
        if max(group.gather(self.num_classes)) > 5:  # a process may have seen no images
            results["top5"] = 100 * correct5 / num_images
        return results

    def _check_finite_logits(self, group: ProcessGroup) -> None:
        """Raise a WeightsError in all processes if any image's logits are not finite."""
        finite = torch.cat(self.finite).tolist()
        own = [name(index) for (index, name), ok in zip(self.images, finite, strict=True) if not ok]
        broken = [name for names in group.gather(own) for name in names]
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
