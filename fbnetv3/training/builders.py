"""The parts of a run from its config: with `run.py`, the only place that reads one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from fbnetv3.arch import ARCHS, ArchDef, cost_of, dump_arch, get_arch, load_arch_folder
from fbnetv3.config.loading import flat_keys
from fbnetv3.data import Preprocessing, build_dataset, build_loader, train_pixels
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.data.transforms import Transform
from fbnetv3.errors import UnknownNameError, UsageError, suggest
from fbnetv3.modeling import build_network, load_weights
from fbnetv3.modeling.torchvision_models import (
    PREFIX,
    ExternalArch,
    build_external,
    check_external,
    load_external,
)
from fbnetv3.modeling.weights import read_state_dict
from fbnetv3.training.distillation.teacher_logits import AnswerFiles, TargetWithAnswer
from fbnetv3.training.losses import CrossEntropy, Distillation, Objective
from fbnetv3.training.optimizers import build_optimizer, build_schedule
from fbnetv3.training.processes.distributed import ALONE, World
from fbnetv3.training.trainer import Mixup
from fbnetv3.utils.downloads import local_path
from fbnetv3.utils.files import file_sha256

AnyArch = ArchDef | ExternalArch


@dataclass(frozen=True)
class Inputs:
    """The data of a run: both splits, how images become inputs, and the loaders."""

    train: ImageDataset
    val: ImageDataset
    preprocessing: Preprocessing
    train_loader: DataLoader
    val_loader: DataLoader


def build_device(name: str, world: World = ALONE) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one, else the CPU. Of several processes, each has its GPU.

    Raises:
        UsageError: it cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and world.size > 1:
            device = torch.device("cuda", world.local_rank)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"DEVICE {name!r} cannot be used here ({reason}): set it to auto or cpu") from None
    return device


def build_arch(cfg: CfgNode, name: str) -> AnyArch:
    """An architecture of ours or of torchvision's by the name that stands in a config.

    Raises:
        UnknownNameError, ArchError: there is none of that name, or its file describes no network.
    """
    if name.startswith(PREFIX):
        return ExternalArch(name)
    found = {defn.name: defn for folder in cfg.MODEL.ARCH_DIRS for defn in load_arch_folder(Path(folder).expanduser())}
    if name in found and name in ARCHS and get_arch(name) != found[name]:
        raise UsageError(f"MODEL.ARCH_DIRS: '{name}' is another network already, that of {ARCHS.origin(name)}")
    if name not in found and name not in ARCHS and found and not name.endswith((".yaml", ".yml")):
        raise UnknownNameError(f"unknown architecture '{name}': {suggest(name, [*found, *ARCHS.names()])}")
    return found.get(name) or get_arch(name)


def describe_arch(arch: AnyArch) -> str:
    """All of the architecture as text, to compare and to keep."""
    return dump_arch(arch) if isinstance(arch, ArchDef) else arch.name


def teacher_key(cfg: CfgNode) -> str:
    """What tells the teacher's architecture from others, wherever its file lies: name and digest; "" for none."""
    if not cfg.DISTILL.ARCH:
        return ""
    arch = build_arch(cfg, cfg.DISTILL.ARCH)
    return f"{arch.name} {hashlib.sha256(describe_arch(arch).encode()).hexdigest()[:12]}"


def preprocessing_of(cfg: CfgNode, arch: AnyArch) -> Preprocessing:
    """Resolution and normalisation that a config asks for, the architecture's own where it asks for none.

    Raises:
        UsageError: the input is too small for the network, or the resize smaller than the crop.
    """
    resolution = cfg.INPUT.RESOLUTION or arch.resolution
    if isinstance(arch, ArchDef):
        cost_of(arch, resolution)  # refuses an input that is too small
    resize = cfg.INPUT.RESIZE or round(resolution * arch.resize / arch.resolution)
    if resize < resolution:
        raise UsageError(f"INPUT.RESIZE {resize} is smaller than the crop of {resolution} pixels")
    return Preprocessing(resolution, resize, tuple(cfg.INPUT.MEAN), tuple(cfg.INPUT.STD), cfg.INPUT.INTERPOLATION)


def build_inputs(cfg: CfgNode, arch: AnyArch, device: torch.device, world: World = ALONE) -> Inputs:
    """Datasets and loaders of a training run. Training images come at the teacher's resolution where that is higher.

    Raises:
        DataError: a folder is missing or empty.
        UsageError: the splits have other classes, or a teacher's answers are not there.
    """
    train, val = (build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, split) for split in ("train", "val"))
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise UsageError(f"DATA.ROOT {cfg.DATA.ROOT}: training and validation have other classes: {', '.join(odd[:5])}")
    preprocessing = preprocessing_of(cfg, arch)
    cached = bool(cfg.DISTILL.CACHE)
    target = None
    if cached:
        check_same_views(cfg, preprocessing.resolution)
        target = TargetWithAnswer(answer_files(cfg, train), cfg.DISTILL.WEIGHT, cfg.SOLVER.LABEL_SMOOTHING)
    side = preprocessing.resolution if cached else max(preprocessing.resolution, teacher_resolution(cfg))
    loader = build_loader(
        train,
        train_pixels_of(cfg, preprocessing, side),
        batch_size=cfg.SOLVER.BATCH_SIZE,
        training=True,
        workers=cfg.DATA.WORKERS,
        seed=cfg.SEED,
        normalize=preprocessing,
        views=cfg.DISTILL.VIEWS if cached else 0,
        target=target,
        pin_memory=device.type == "cuda",
        rank=world.rank,
        world_size=world.size,
    )
    return Inputs(train, val, preprocessing, loader, build_val_loader(cfg, val, preprocessing, device, world))


def check_same_views(cfg: CfgNode, resolution: int) -> None:
    """Refuse augmentations whose chances depend on the input's size where teacher and student have another.

    Raises:
        UsageError: names the key.
    """
    other = teacher_resolution(cfg)
    if other != resolution and (cfg.INPUT.CROP == "padded" or cfg.INPUT.RANDOM_ERASING):
        key = "INPUT.CROP padded" if cfg.INPUT.CROP == "padded" else "INPUT.RANDOM_ERASING"
        raise UsageError(
            f"{key}: falls otherwise at the teacher's {other} pixels than at {resolution}, so that DISTILL.CACHE "
            f"cannot hold its answers; set DISTILL.RESOLUTION {resolution}"
        )


def train_pixels_of(cfg: CfgNode, preprocessing: Preprocessing, side: int) -> Transform:
    """The config's transform of training, to images with that side in pixels."""
    scale = side / preprocessing.resolution
    return train_pixels(
        replace(preprocessing, resolution=side, resize=round(preprocessing.resize * scale)),
        crop=cfg.INPUT.CROP,
        crop_scale=cfg.INPUT.CROP_SCALE,
        crop_padding=round(cfg.INPUT.CROP_PADDING * scale),
        flip=cfg.INPUT.FLIP,
        auto_augment=cfg.INPUT.AUTO_AUGMENT,
        random_erasing=cfg.INPUT.RANDOM_ERASING,
    )


def answer_files(cfg: CfgNode, dataset: ImageDataset) -> AnswerFiles:
    """Where the answers of the config's teacher to its training images lie, and what decides about them."""
    keys = {key: value for key, value in flat_keys(cfg).items() if key.startswith("INPUT.")}
    about = {"SEED": cfg.SEED, "DATA.NAME": cfg.DATA.NAME, "DISTILL.ARCH": teacher_key(cfg)}
    about |= {"teacher's resolution": teacher_resolution(cfg), **keys}
    about["SHA-256 of DISTILL.WEIGHTS"] = file_sha256(local_path(cfg.DISTILL.WEIGHTS))
    about["SHA-256 of the images' names"] = _digest_of_names(dataset)
    shape = (cfg.DISTILL.VIEWS, len(dataset), len(dataset.classes))
    return AnswerFiles(Path(cfg.DISTILL.CACHE).expanduser(), about, shape)


def _digest_of_names(dataset: ImageDataset) -> str:
    """Of what the images are called and in which order; the folder above their classes' may change."""
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        digest.update("/".join(Path(dataset.image_name(index)).parts[-2:]).encode() + b"\n")
    return digest.hexdigest()


def build_teacher(cfg: CfgNode, num_classes: int, device: torch.device) -> nn.Module:
    """The config's teacher.

    Raises:
        UsageError: it knows another number of classes.
        WeightsError: its weights cannot be had or do not fit.
    """
    arch = build_arch(cfg, cfg.DISTILL.ARCH)
    teacher = _network(arch, num_classes, cfg.MODEL.IN_CHANS)
    if not _load(teacher, arch, cfg.DISTILL.WEIGHTS):
        raise UsageError(
            f"DISTILL.WEIGHTS {cfg.DISTILL.WEIGHTS}: the teacher has another number of classes than {num_classes}"
        )
    return teacher.to(device, memory_format=_memory_format(cfg))  # type: ignore[call-overload]


def build_val_loader(
    cfg: CfgNode, dataset: ImageDataset, preprocessing: Preprocessing, device: torch.device, world: World = ALONE
) -> DataLoader:
    """Batches for evaluation, each image once, over all processes."""
    return build_loader(
        dataset,
        preprocessing.pixels(),
        batch_size=cfg.EVAL.BATCH_SIZE,
        training=False,
        workers=cfg.DATA.WORKERS,
        normalize=preprocessing,
        pin_memory=device.type == "cuda",
        rank=world.rank,
        world_size=world.size,
    )


def build_model(
    cfg: CfgNode, arch: AnyArch, classes: list[str], device: torch.device, weights: str, need_head: bool = False
) -> nn.Module:
    """The classifier, with weights where there are some, on its device.

    Raises:
        UsageError: the config names another number of classes than the data has, or the weights do and
            `need_head` is set.
        WeightsError: the weights cannot be had or do not fit.
    """
    num_classes = cfg.MODEL.NUM_CLASSES or len(classes)
    if num_classes != len(classes):
        raise UsageError(f"MODEL.NUM_CLASSES {num_classes}: {cfg.DATA.NAME} has {len(classes)} classes; 0 takes them")
    model = _network(arch, num_classes, cfg.MODEL.IN_CHANS, cfg.MODEL.DROP_RATE, cfg.MODEL.DROP_PATH_RATE)
    if isinstance(arch, ExternalArch):
        check_external(model, arch, preprocessing_of(cfg, arch).resolution)
    if weights and not _load(model, arch, weights) and need_head:
        raise UsageError(f"{weights}: has another number of classes than the {num_classes} of {cfg.DATA.NAME}")
    return model.to(device, memory_format=_memory_format(cfg))  # type: ignore[call-overload]


def _network(
    arch: AnyArch, num_classes: int, in_chans: int, drop_rate: float = 0, drop_path_rate: float = 0
) -> nn.Module:
    build: Callable[..., nn.Module] = build_network if isinstance(arch, ArchDef) else build_external
    return build(arch, num_classes=num_classes, in_chans=in_chans, drop_rate=drop_rate, drop_path_rate=drop_path_rate)


def _load(model: nn.Module, arch: AnyArch, weights: str) -> bool:
    """Load weights; returns whether the head was loaded with them."""
    if isinstance(arch, ArchDef):
        return load_weights(model, weights).head
    return load_external(model, read_state_dict(weights), weights)


def _memory_format(cfg: CfgNode) -> torch.memory_format:
    return torch.channels_last if cfg.MODEL.CHANNELS_LAST else torch.contiguous_format


def teacher_resolution(cfg: CfgNode) -> int:
    """Side of the teacher's input in pixels; 0 without a teacher."""
    if not cfg.DISTILL.ARCH:
        return 0
    return cfg.DISTILL.RESOLUTION or build_arch(cfg, cfg.DISTILL.ARCH).resolution


def build_objective(cfg: CfgNode, num_classes: int, resolution: int, device: torch.device) -> Objective:
    """Cross-entropy, or distillation from the config's teacher.

    Raises:
        UsageError: the teacher knows another number of classes.
        WeightsError: its weights cannot be had or do not fit.
    """
    if cfg.DISTILL.CACHE:
        return CrossEntropy()  # answers and smoothed labels are in the targets already
    if not cfg.DISTILL.ARCH:
        return CrossEntropy(cfg.SOLVER.LABEL_SMOOTHING)
    teacher = build_teacher(cfg, num_classes, device)
    return Distillation(teacher, resolution, teacher_resolution(cfg), cfg.DISTILL.WEIGHT, cfg.SOLVER.LABEL_SMOOTHING)


def build_mixup(cfg: CfgNode, num_classes: int) -> Mixup | None:
    """Mixup of a batch (torchvision's), or None."""
    return v2.MixUp(alpha=cfg.INPUT.MIXUP, num_classes=num_classes) if cfg.INPUT.MIXUP else None


def base_lr(cfg: CfgNode) -> float:
    """The learning rate at the end of the warm-up, scaled to the batch size where the config asks for it."""
    if not cfg.SOLVER.LR_BATCH_SIZE:
        return cfg.SOLVER.LR
    return cfg.SOLVER.LR * cfg.SOLVER.BATCH_SIZE / cfg.SOLVER.LR_BATCH_SIZE


def optimizer_of(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The config's optimiser for a model."""
    solver = cfg.SOLVER
    return build_optimizer(
        solver.OPTIMIZER,
        model,
        base_lr(cfg),
        weight_decay=solver.WEIGHT_DECAY,
        decay_norm_bias=solver.DECAY_NORM_BIAS,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        alpha=solver.RMSPROP_ALPHA,
        eps=solver.RMSPROP_EPS,
    )


def schedule_of(cfg: CfgNode) -> ParamScheduler:
    """The config's factor on the learning rate."""
    solver = cfg.SOLVER
    return build_schedule(
        solver.SCHEDULE,
        solver.EPOCHS,
        decay=solver.DECAY,
        warmup_epochs=solver.WARMUP_EPOCHS,
        warmup_factor=solver.WARMUP_FACTOR,
    )
