"""Build the datasets, loaders and teacher-logit cache of a classifier's run from its config."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader

from fbnetv3.data import Preprocessing, build_dataset, build_loader, train_transform
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.data.transforms import Transform
from fbnetv3.errors import UsageError
from fbnetv3.training.builders import (
    AnyArch,
    config_key,
    preprocessing_from_config,
    teacher_fingerprint,
    teacher_resolution,
)
from fbnetv3.training.distillation.teacher_logits import DistillationTarget, TeacherLogitFiles
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, ProcessGroup
from fbnetv3.utils.downloads import local_path
from fbnetv3.utils.files import file_sha256
from fbnetv3.utils.nested_keys import flatten
from fbnetv3.utils.text import first_few


@dataclass(frozen=True)
class Inputs:
    """Datasets, preprocessing and loaders of a run."""

    train: ImageDataset
    val: ImageDataset
    preprocessing: Preprocessing
    train_loader: DataLoader
    val_loader: DataLoader


def dataset_from_config(cfg: CfgNode, split: str) -> ImageDataset:
    """Open a split of the config's dataset."""
    with config_key("DATA.NAME"):
        return build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, split)


def build_inputs(cfg: CfgNode, arch: AnyArch, device: torch.device, group: ProcessGroup = SINGLE_PROCESS) -> Inputs:
    """Build datasets and loaders of a run. Training images have the teacher's resolution if that is higher."""
    train, val = dataset_from_config(cfg, "train"), dataset_from_config(cfg, "val")
    if train.classes != val.classes:
        names = sorted(set(train.classes) ^ set(val.classes))
        raise UsageError(
            f"DATA.ROOT {cfg.DATA.ROOT}: training and validation have different classes: {first_few(names, 5)}"
        )
    preprocessing = preprocessing_from_config(cfg, arch)
    # The student resizes larger images itself, unless the teacher's logits are cached
    target, views = None, 0
    side = max(preprocessing.resolution, teacher_resolution(cfg))
    if cfg.DISTILL.CACHE:
        check_cacheable_views(cfg, preprocessing.resolution)
        logits = teacher_logit_files(cfg, train)
        target = DistillationTarget(logits, cfg.DISTILL.ALPHA, cfg.SOLVER.LABEL_SMOOTHING)
        views = cfg.DISTILL.VIEWS
        side = preprocessing.resolution
    train_loader = loader_from_config(
        cfg,
        train,
        train_transform_from_config(cfg, preprocessing, side),
        preprocessing,
        device,
        group,
        batch_size=cfg.SOLVER.BATCH_SIZE,
        training=True,
        views=views,
        target=target,
    )
    return Inputs(train, val, preprocessing, train_loader, build_val_loader(cfg, val, preprocessing, device, group))


def check_cacheable_views(cfg: CfgNode, resolution: int) -> None:
    """Refuse augmentations that differ between the resolutions of teacher and student."""
    other_resolution = teacher_resolution(cfg)
    if other_resolution == resolution or not (cfg.INPUT.CROP == "padded" or cfg.INPUT.RANDOM_ERASING):
        return
    key = "INPUT.CROP padded" if cfg.INPUT.CROP == "padded" else "INPUT.RANDOM_ERASING"
    raise UsageError(
        f"{key}: differs between the teacher's {other_resolution} pixels and the student's {resolution}, so "
        f"DISTILL.CACHE cannot hold the teacher's logits; set DISTILL.RESOLUTION {resolution}"
    )


def train_transform_from_config(cfg: CfgNode, preprocessing: Preprocessing, side: int) -> Transform:
    """Build the config's training transform to uint8 images (channels, side, side)."""
    # Pixels in the config refer to the student's resolution
    scale = side / preprocessing.resolution
    resized = replace(preprocessing, resolution=side, resize=round(preprocessing.resize * scale))
    return train_transform(
        resized,
        crop=cfg.INPUT.CROP,
        crop_scale=cfg.INPUT.CROP_SCALE,
        crop_padding=round(cfg.INPUT.CROP_PADDING * scale),
        flip=cfg.INPUT.FLIP,
        auto_augment=cfg.INPUT.AUTO_AUGMENT,
        random_erasing=cfg.INPUT.RANDOM_ERASING,
        normalize=False,
    )


def teacher_logit_files(cfg: CfgNode, dataset: ImageDataset) -> TeacherLogitFiles:
    """Return the cache of the teacher's logits for a dataset, with the fingerprint that it must match."""
    # Everything that determines the views, the teacher's weights, and the images themselves
    fingerprint = {key: value for key, value in flatten(cfg).items() if key.startswith("INPUT.")}
    fingerprint |= {
        "SEED": cfg.SEED,
        "DATA.NAME": cfg.DATA.NAME,
        "DISTILL.ARCH": teacher_fingerprint(cfg),
        "teacher resolution": teacher_resolution(cfg),
        "SHA-256 of DISTILL.WEIGHTS": file_sha256(local_path(cfg.DISTILL.WEIGHTS)),
        "SHA-256 of the image names": _digest_of_names(dataset),
    }
    shape = (cfg.DISTILL.VIEWS, len(dataset), len(dataset.classes))
    return TeacherLogitFiles(Path(cfg.DISTILL.CACHE).expanduser(), fingerprint, shape)


def _digest_of_names(dataset: ImageDataset) -> str:
    """Hash the class folders and names of all images in order; the dataset itself may have moved."""
    # Hashing the contents would take too long
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        digest.update("/".join(Path(dataset.image_name(index)).parts[-2:]).encode() + b"\n")
    return digest.hexdigest()


def build_val_loader(
    cfg: CfgNode,
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> DataLoader:
    """Build the loader for evaluation, which divides the images among the processes."""
    transform = preprocessing.transform(normalize=False)
    return loader_from_config(
        cfg, dataset, transform, preprocessing, device, group, batch_size=cfg.EVAL.BATCH_SIZE, training=False
    )


def loader_from_config(
    cfg: CfgNode,
    dataset: ImageDataset,
    transform: Transform,
    preprocessing: Preprocessing,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
    **options: Any,
) -> DataLoader:
    """Build a loader with the config's seed and workers, for a transform to uint8; `options` go to `build_loader`."""
    return build_loader(
        dataset,
        transform,
        workers=cfg.DATA.WORKERS,
        seed=cfg.SEED,
        normalize=preprocessing,
        pin_memory=device.type == "cuda",
        rank=group.rank,
        world_size=group.size,
        **options,
    )
