"""Build the datasets, loaders and teacher-logit cache of a classifier's run from its config."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader

from fbnetv3.data import DATASETS, Preprocessing, build_dataset, build_loader, train_transform
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.data.transforms import Transform
from fbnetv3.errors import FieldError, UsageError
from fbnetv3.training.builders import AnyArch, preprocessing_from_config, teacher_fingerprint, teacher_resolution
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
    DATASETS.check(cfg.DATA.NAME, "DATA.NAME", FieldError)
    return build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, split)


def build_inputs(cfg: CfgNode, arch: AnyArch, device: torch.device, group: ProcessGroup = SINGLE_PROCESS) -> Inputs:
    """Build datasets and loaders of a run. Training images have the teacher's resolution if that is higher."""
    train, val = dataset_from_config(cfg, "train"), dataset_from_config(cfg, "val")
    if train.classes != val.classes:
        differing = first_few(sorted(set(train.classes) ^ set(val.classes)), 5)
        raise UsageError(f"DATA.ROOT {cfg.DATA.ROOT}: training and validation have different classes: {differing}")
    preprocessing = preprocessing_from_config(cfg, arch)
    # The student resizes larger images itself, unless the teacher's logits are cached
    side = max(preprocessing.resolution, teacher_resolution(cfg))
    options: dict[str, Any] = {}
    if cfg.DISTILL.CACHE:
        side = preprocessing.resolution
        files = teacher_logit_files(cfg, train, side)
        options["views"] = cfg.DISTILL.VIEWS
        options["target"] = DistillationTarget(files, cfg.DISTILL.ALPHA, cfg.SOLVER.LABEL_SMOOTHING)
    train_loader = loader_from_config(cfg, train, preprocessing, device, group, side=side, training=True, **options)
    val_loader = loader_from_config(cfg, val, preprocessing, device, group)
    return Inputs(train, val, preprocessing, train_loader, val_loader)


def teacher_logit_files(cfg: CfgNode, dataset: ImageDataset, resolution: int) -> TeacherLogitFiles:
    """Return the cache of the teacher's logits for a dataset, with the fingerprint that it must match.

    Augmentations that differ between the teacher's resolution and the student's are refused.
    """
    if teacher_resolution(cfg) != resolution and (cfg.INPUT.CROP == "padded" or cfg.INPUT.RANDOM_ERASING):
        key = "INPUT.CROP padded" if cfg.INPUT.CROP == "padded" else "INPUT.RANDOM_ERASING"
        raise UsageError(
            f"{key}: differs between the teacher's {teacher_resolution(cfg)} pixels and the student's {resolution}, so "
            f"DISTILL.CACHE cannot hold the teacher's logits; set DISTILL.RESOLUTION {resolution}"
        )
    # Class folders and names of the images, which may have moved; hashing their contents would take too long
    names = hashlib.sha256()
    for index in range(len(dataset)):
        names.update("/".join(Path(dataset.image_name(index)).parts[-2:]).encode() + b"\n")
    # Everything that determines the views, the teacher's weights, and the images themselves
    fingerprint = {key: value for key, value in flatten(cfg).items() if key.startswith("INPUT.")}
    fingerprint |= {
        "SEED": cfg.SEED,
        "DATA.NAME": cfg.DATA.NAME,
        "DISTILL.ARCH": teacher_fingerprint(cfg),
        "teacher resolution": teacher_resolution(cfg),
        "SHA-256 of DISTILL.WEIGHTS": file_sha256(local_path(cfg.DISTILL.WEIGHTS)),
        "SHA-256 of the image names": names.hexdigest(),
    }
    shape = (cfg.DISTILL.VIEWS, len(dataset), len(dataset.classes))
    return TeacherLogitFiles(Path(cfg.DISTILL.CACHE).expanduser(), fingerprint, shape)


def loader_from_config(
    cfg: CfgNode,
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
    *,
    side: int = 0,
    training: bool = False,
    **options: Any,
) -> DataLoader:
    """Build a loader of uint8 images, augmented to `side` pixels, or as in evaluation if that is 0."""
    return build_loader(
        dataset,
        _train_transform(cfg, preprocessing, side) if side else preprocessing.transform(normalize=False),
        batch_size=cfg.SOLVER.BATCH_SIZE if training else cfg.EVAL.BATCH_SIZE,
        training=training,
        workers=cfg.DATA.WORKERS,
        seed=cfg.SEED,
        normalize=preprocessing,
        pin_memory=device.type == "cuda",
        rank=group.rank,
        world_size=group.size,
        **options,
    )


def _train_transform(cfg: CfgNode, preprocessing: Preprocessing, side: int) -> Transform:
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
