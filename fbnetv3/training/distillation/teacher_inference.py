"""Run a teacher on every view of every training image and cache its logits."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from tqdm import tqdm

from fbnetv3.data import Batch, CorruptImageCounter
from fbnetv3.data.batches.device_copies import HostCopy, copy_to_host, one_ahead, prefetch_to_device
from fbnetv3.data.loader import BatchLoader, memory_format
from fbnetv3.data.samplers import DistributedSequentialSampler
from fbnetv3.errors import UsageError
from fbnetv3.training.builders import (
    build_teacher,
    dataset_from_config,
    loader_from_config,
    preprocessing_from_config,
    teacher_logit_cache,
    teacher_resolution,
)
from fbnetv3.training.devices.autocast_precision import autocast_dtype
from fbnetv3.training.devices.run_device import select_device
from fbnetv3.training.distillation.distillation_loss import resize_images
from fbnetv3.training.distillation.teacher_logits import TeacherLogitCache
from fbnetv3.training.evaluation.inference_precision import (
    cast_weights,
    inference_autocast,
    reduces_precision,
)
from fbnetv3.training.processes.interrupts import check_interrupt, deferred_interrupts
from fbnetv3.training.recorded_networks import start_from_weights

logger = logging.getLogger(__name__)


def cache_teacher_logits(cfg: CfgNode) -> TeacherLogitCache:
    """Cache the logits of the config's teacher in `DISTILL.CACHE`; an incomplete cache is resumed."""
    if not cfg.DISTILL.CACHE:
        raise UsageError("DISTILL.CACHE is empty: set it to a folder for the teacher's logits")
    device = select_device(cfg.DEVICE)
    cfg, arch, _ = start_from_weights(cfg)
    dataset = dataset_from_config(cfg, "train")
    preprocessing = preprocessing_from_config(cfg, arch)
    cache = teacher_logit_cache(cfg, dataset, preprocessing.resolution)
    teacher = build_teacher(cfg, dataset.classes, device)
    # Draw views at the higher of the two resolutions, and resize them for the teacher
    side = max(preprocessing.resolution, teacher_resolution(cfg))
    loader = loader_from_config(cfg, dataset, preprocessing, device, side=side, views=cfg.DISTILL.VIEWS)
    completed = cache.completed()
    views, images, _ = cache.shape
    logger.info(
        "caching %s's logits for %d views of %d images; %d are cached",
        cfg.DISTILL.ARCH,
        views,
        images,
        completed,
    )
    with deferred_interrupts():
        cache.write(_logits_of_views(cfg, teacher, loader, images, completed, device), completed)
    return cache


def _logits_of_views(
    cfg: CfgNode,
    teacher: nn.Module,
    loader: BatchLoader,
    num_images: int,
    completed: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield logits (N, classes) that are not cached yet, and their positions in the order of views and images.

    Corrupt images are skipped.
    """
    corrupt_images = CorruptImageCounter(cfg.DATA.MAX_CORRUPT)
    sampler = cast("DistributedSequentialSampler", loader.sampler)
    precision = autocast_dtype(cfg.SOLVER.PRECISION, device)
    teacher.eval()
    if reduces_precision(device, precision):
        cast_weights(teacher, precision)
    for view in range(completed // num_images, cfg.DISTILL.VIEWS):
        # The sampler's epoch selects the view, as in training
        sampler.epoch = view
        sampler.first_image = max(0, completed - view * num_images)
        bar = tqdm(loader, desc=f"view {view + 1}/{cfg.DISTILL.VIEWS}", leave=False, disable=None)
        started = (
            (_start_inference(cfg, teacher, batch, device, precision), batch.indices)
            for batch in prefetch_to_device(_readable(bar, corrupt_images), device)
        )
        # Of a batch, a GPU computes the logits while those of the batch before are written
        for logits, indices in one_ahead(started):
            yield logits(), [view * num_images + int(index) for index in indices]


def _readable(batches: Iterable[Batch], corrupt_images: CorruptImageCounter) -> Iterator[Batch]:
    """Yield the batches that have images, after counting those that could not be read."""
    for batch in batches:
        check_interrupt()
        corrupt_images.add(batch.errors)
        if len(batch.targets):
            yield batch


@torch.no_grad()
def _start_inference(
    cfg: CfgNode, teacher: nn.Module, batch: Batch, device: torch.device, precision: torch.dtype
) -> HostCopy:
    """Start to compute a batch's logits (N, classes) in the precision of training, and to copy them to the host."""
    images, _ = batch.to(device, memory_format(cfg.MODEL.CHANNELS_LAST))
    with inference_autocast(device, precision):
        return copy_to_host(teacher(resize_images(images, teacher_resolution(cfg))).half())
