"""A teacher answers every view of every training image, once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from tqdm import tqdm

from fbnetv3.data import Batch, DamageCounter, build_dataset, build_loader
from fbnetv3.data.loader import PartSampler
from fbnetv3.errors import UsageError
from fbnetv3.training.builders import (
    answer_files,
    build_arch,
    build_device,
    build_teacher,
    check_same_views,
    preprocessing_of,
    teacher_resolution,
    train_pixels_of,
)
from fbnetv3.training.classifier_evaluation import evaluation_mode, memory_format
from fbnetv3.training.distillation.teacher_logits import AnswerFiles
from fbnetv3.training.losses import scaled_to
from fbnetv3.training.processes.interrupts import check_interrupt, deferred_interrupt

logger = logging.getLogger(__name__)


def cache_answers(cfg: CfgNode) -> AnswerFiles:
    """Let the config's teacher answer every view of every training image, into `DISTILL.CACHE`; go on with a part.

    Raises:
        UserError: a wrong config, missing data or weights, a folder that cannot be written.
    """
    if not cfg.DISTILL.CACHE:
        raise UsageError("DISTILL.CACHE is not set: name the folder for the answers")
    device = build_device(cfg.DEVICE)
    dataset = build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, "train")
    preprocessing = preprocessing_of(cfg, build_arch(cfg, cfg.MODEL.ARCH))
    check_same_views(cfg, preprocessing.resolution)
    files, resolution = answer_files(cfg, dataset), teacher_resolution(cfg)
    teacher = build_teacher(cfg, len(dataset.classes), device)
    loader = build_loader(
        dataset,
        train_pixels_of(cfg, preprocessing, max(preprocessing.resolution, resolution)),
        batch_size=cfg.EVAL.BATCH_SIZE,
        training=False,
        workers=cfg.DATA.WORKERS,
        seed=cfg.SEED,
        normalize=preprocessing,
        views=cfg.DISTILL.VIEWS,
        pin_memory=device.type == "cuda",
    )
    damage, done = DamageCounter(cfg.DATA.MAX_CORRUPT), files.done()
    logger.info("%s answers %d views of %d images, %d are done", cfg.DISTILL.ARCH, *files.shape[:2], done)

    sampler = cast("PartSampler", loader.sampler)

    def answers() -> Iterator[tuple[Tensor, list[int]]]:
        for view in range(done // len(dataset), cfg.DISTILL.VIEWS):
            sampler.epoch, sampler.start = view, max(0, done - view * len(dataset))
            batches = tqdm(loader, desc=f"view {view + 1}/{cfg.DISTILL.VIEWS}", leave=False, disable=None)
            for logits, numbers in _answer(teacher, batches, resolution, device, damage, cfg.MODEL.CHANNELS_LAST):
                yield logits, [view * len(dataset) + number for number in numbers]

    with deferred_interrupt():
        files.write(answers(), done)
    return files


@torch.no_grad()
def _answer(
    teacher: nn.Module,
    batches: Iterable[Batch],
    resolution: int,
    device: torch.device,
    damage: DamageCounter,
    channels_last: bool = True,
) -> Iterable[tuple[Tensor, list[int]]]:
    """A teacher's logits for batches, and the numbers of their images.

    Args:
        teacher: gives logits (N, classes).
        batches: of the training images in order.
        resolution: side of the teacher's input in pixels.
        device: where to compute.
        damage: counts images that cannot be read; they stay without answer.
        channels_last: memory order of the images.

    Raises:
        DataError: too many damaged images.
    """
    with evaluation_mode(teacher):
        for batch in batches:
            check_interrupt()
            damage.add(batch.damaged)
            if len(batch.targets):
                images, _ = batch.on(device, memory_format(channels_last))
                yield teacher(scaled_to(images, resolution)).float(), batch.numbers
