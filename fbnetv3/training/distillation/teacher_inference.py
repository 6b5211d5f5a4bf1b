"""Run a teacher on every view of every training image and cache its logits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import cast

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fbnetv3.data import CorruptImageCounter
from fbnetv3.data.loader import memory_format
from fbnetv3.data.samplers import DistributedSequentialSampler
from fbnetv3.errors import UsageError
from fbnetv3.training.builders import (
    build_teacher,
    dataset_from_config,
    loader_from_config,
    preprocessing_from_config,
    select_device,
    teacher_logit_cache,
    teacher_resolution,
)
from fbnetv3.training.distillation.distillation_loss import resize_images
from fbnetv3.training.distillation.teacher_logits import TeacherLogitCache
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


@torch.no_grad()
def _logits_of_views(
    cfg: CfgNode,
    teacher: nn.Module,
    loader: DataLoader,
    num_images: int,
    completed: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield logits (N, classes) that are not cached yet, and their positions in the order of views and images.

    Corrupt images are skipped.
    """
    corrupt_images = CorruptImageCounter(cfg.DATA.MAX_CORRUPT)
    resolution = teacher_resolution(cfg)
    sampler = cast("DistributedSequentialSampler", loader.sampler)
    teacher.eval()
    for view in range(completed // num_images, cfg.DISTILL.VIEWS):
        # The sampler's epoch selects the view, as in training
        sampler.epoch = view
        sampler.first_image = max(0, completed - view * num_images)
        for batch in tqdm(loader, desc=f"view {view + 1}/{cfg.DISTILL.VIEWS}", leave=False, disable=None):
            check_interrupt()
            corrupt_images.add(batch.errors)
            if len(batch.targets):
                images, _ = batch.to(device, memory_format(cfg.MODEL.CHANNELS_LAST))
                logits = teacher(resize_images(images, resolution)).float()
                yield logits, [view * num_images + index for index in batch.indices]
