"""Top-1, top-5 and loss of a classifier over a dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from fbnetv3.data import Batch, DamageCounter
from fbnetv3.errors import DataError
from fbnetv3.training.processes.distributed import ALONE, World
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    *,
    channels_last: bool = True,
    damage: DamageCounter | None = None,
    progress: bool = True,
    world: World = ALONE,
) -> dict[str, float]:
    """Evaluate a classifier; it is in evaluation mode meanwhile and left as it was.

    Args:
        model: gives logits (N, classes).
        batches: what to evaluate on.
        device: where to compute.
        channels_last: memory order of the images.
        damage: counts images that cannot be read; default: none may be damaged.
        progress: show a bar, on a terminal.
        world: the processes that share the images.

    Returns:
        "top1" and "top5" in per cent (top5 only where there are more than five classes), "loss" (cross-entropy)
        and "images", their number.

    Raises:
        DataError: no image could be read, or more are damaged than `damage` allows.
    """
    damage = damage or DamageCounter(0)
    images = classes = 0
    damaged: list[str] = []
    correct1 = correct5 = loss = torch.zeros((), device=device)
    with evaluation_mode(model):
        for batch in tqdm(batches, desc="evaluation", leave=False, disable=None if progress else True):
            damaged += batch.damaged
            if world.size == 1:  # of several processes, one must not leave the others waiting for it
                check_interrupt()
                damage.add(batch.damaged)
            if not len(batch.targets):
                continue
            x, targets = batch.on(device, memory_format(channels_last))
            logits = model(x)
            classes = logits.shape[1]
            top = logits.topk(min(5, classes)).indices == targets[:, None]
            correct1 = correct1 + top[:, 0].sum()
            correct5 = correct5 + top.any(1).sum()
            loss = loss + F.cross_entropy(logits.float(), targets, reduction="sum")
            images += len(targets)
    if agree_on_interrupt(world):
        check_interrupt()
    damage.add([message for messages in world.gather(damaged) for message in messages])
    classes = max(world.gather(classes))
    top1, top5, total, count = world.sum(float(correct1), float(correct5), float(loss), images)
    if not count:
        raise DataError("no image to evaluate on")
    result = {"top1": 100 * top1 / count, "loss": total / count, "images": int(count)}
    if classes > 5:
        result["top5"] = 100 * top5 / count
    return result


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards in the mode in which it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def memory_format(channels_last: bool) -> torch.memory_format:
    """Torch's name for the memory order."""
    return torch.channels_last if channels_last else torch.contiguous_format
