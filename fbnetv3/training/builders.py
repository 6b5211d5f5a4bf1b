"""Build the parts of a classifier's run from its config, so that the modules that implement them need no config."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.arch import ARCHS, ArchDef, compute_cost, get_arch, load_arch_folder
from fbnetv3.data import DATASETS, Preprocessing, build_dataset, build_loader, train_transform
from fbnetv3.data.batches.batch_augmentation import BatchAugmentation
from fbnetv3.data.batches.device_loader import DeviceLoader
from fbnetv3.data.batches.worker_count import resolve_workers
from fbnetv3.data.classes.class_balance import balanced_order, class_indices, class_weights
from fbnetv3.data.classes.class_matching import relabel
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.data.loader import BatchLoader, memory_format
from fbnetv3.data.transforms import Transform, evaluation_preprocessing
from fbnetv3.errors import DataError, FieldError, UnknownNameError, UsageError, suggest
from fbnetv3.modeling import build_network, load_weights
from fbnetv3.modeling.torchvision_models import (
    TORCHVISION_PREFIX,
    TorchvisionArch,
    build_torchvision_model,
    check_torchvision_model,
    count_torchvision_macs,
    load_torchvision_weights,
)
from fbnetv3.training.devices.autocast_precision import autocast_dtype
from fbnetv3.training.devices.kept_images import crop_padding, is_kept_on_device, resized
from fbnetv3.training.distillation.distillation_loss import Distillation
from fbnetv3.training.distillation.teacher_adapter import adapt_teacher
from fbnetv3.training.distillation.teacher_logits import DistillationTarget, TeacherLogitCache
from fbnetv3.training.evaluation.inference_precision import cast_weights, reduces_precision
from fbnetv3.training.fine_tuning.head_transfer import transfer_by_class
from fbnetv3.training.fine_tuning.run_length import fit_config
from fbnetv3.training.losses import Objective, supervised_objective
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, ProcessGroup
from fbnetv3.training.run_state.data_fingerprint import image_names_digest
from fbnetv3.training.run_state.network_record import (
    AnyArch,
    NetworkRecord,
    arch_identity,
    read_network_record,
)
from fbnetv3.training.solver import loss_from_config
from fbnetv3.utils.downloads import ZOO_PREFIX, local_path
from fbnetv3.utils.files import expand_path, file_sha256
from fbnetv3.utils.nested_keys import flatten
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)


def resolve_arch(cfg: CfgNode, name: str) -> AnyArch:
    """Return an architecture, of this project or of torchvision, by the name in a config."""
    if name.startswith(TORCHVISION_PREFIX):
        return TorchvisionArch(name)
    # Files in MODEL.ARCH_DIRS come first, but must not redefine a registered name
    folders = [expand_path(folder) for folder in cfg.MODEL.ARCH_DIRS]
    own_archs = {arch.name: arch for folder in folders for arch in load_arch_folder(folder)}
    if name not in own_archs:
        is_file = name.endswith((".yaml", ".yml"))
        if own_archs and not is_file and name not in ARCHS:
            raise UnknownNameError(
                f"unknown architecture '{name}': {suggest(name, [*own_archs, *ARCHS.names()])}"
            )
        return get_arch(name)
    if name in ARCHS and get_arch(name) != own_archs[name]:
        raise UsageError(
            f"MODEL.ARCH_DIRS: a different network is already named '{name}', in {ARCHS.origin(name)}"
        )
    return own_archs[name]


def teacher_fingerprint(cfg: CfgNode) -> str:
    """Return the name and a digest of the teacher's architecture, whatever its file's path; "" without a teacher."""
    if not cfg.DISTILL.ARCH:
        return ""
    arch = resolve_arch(cfg, cfg.DISTILL.ARCH)
    return f"{arch.name} {hashlib.sha256(arch_identity(arch).encode()).hexdigest()[:12]}"


def preprocessing_from_config(cfg: CfgNode, arch: AnyArch) -> Preprocessing:
    """Return the config's preprocessing, with the architecture's resolution unless INPUT.RESOLUTION is set."""
    resolution = cfg.INPUT.RESOLUTION or arch.resolution
    if isinstance(arch, ArchDef):
        compute_cost(arch, resolution)  # raises if the input is too small
    # Keep the architecture's ratio of short side to crop
    resize = cfg.INPUT.RESIZE or round(resolution * arch.resize / arch.resolution)
    if resize < resolution:
        raise UsageError(f"INPUT.RESIZE {resize} must be at least the crop size of {resolution} pixels")
    return Preprocessing(
        resolution, resize, tuple(cfg.INPUT.MEAN), tuple(cfg.INPUT.STD), cfg.INPUT.INTERPOLATION
    )


def count_macs(cfg: CfgNode, arch: AnyArch, num_classes: int) -> int:
    """Return the multiply-adds of a network for one image at the config's resolution."""
    resolution = preprocessing_from_config(cfg, arch).resolution
    if isinstance(arch, ArchDef):
        return compute_cost(arch, resolution, num_classes=num_classes, in_chans=cfg.MODEL.IN_CHANS).macs
    with torch.random.fork_rng(devices=[]):  # it builds another network
        return count_torchvision_macs(arch, resolution, num_classes)


def teacher_resolution(cfg: CfgNode) -> int:
    """Return the side of the teacher's input in pixels; 0 without a teacher."""
    if not cfg.DISTILL.ARCH:
        return 0
    return cfg.DISTILL.RESOLUTION or resolve_arch(cfg, cfg.DISTILL.ARCH).resolution


def build_teacher(cfg: CfgNode, classes: Sequence[str], device: torch.device) -> nn.Module:
    """Build the config's teacher with its weights. It takes the student's input and returns logits of `classes`.

    If the weights record names of classes and normalization, they are matched with the student's.
    """
    weights = cfg.DISTILL.WEIGHTS
    arch = resolve_arch(cfg, cfg.DISTILL.ARCH)
    record = read_network_record(weights)
    outputs = record.classes if record and record.classes else classes
    teacher = _build_network(cfg, arch, len(outputs))
    _log_assumed_classes(weights, record, outputs)
    if not _load_weights(teacher, arch, weights):
        problem = f"DISTILL.WEIGHTS {weights}: does not have the dataset's {len(classes)} classes"
        raise UsageError(f"{problem}: use a teacher trained on them")
    if record:
        teacher = adapt_teacher(teacher, record, classes, tuple(cfg.INPUT.MEAN), tuple(cfg.INPUT.STD))
    return _to_device(teacher, cfg, device)


def build_model(
    cfg: CfgNode,
    arch: AnyArch,
    classes: list[str],
    device: torch.device,
    weights: str,
    require_head: bool = False,
    record: NetworkRecord | None = None,
) -> nn.Module:
    """Build the classifier on its device, with weights from a file, URL or `zoo://` entry; "" for random ones.

    If `record`, what the weights record, names other classes, the head gets the rows of those with the same names, and
    random ones for the others. With `require_head`, weights with a different number of classes raise a UsageError
    instead.
    """
    num_classes = cfg.MODEL.NUM_CLASSES or len(classes)
    if num_classes != len(classes):
        problem = f"MODEL.NUM_CLASSES {num_classes}: {cfg.DATA.NAME} has {len(classes)} classes"
        raise UsageError(f"{problem}; set it to 0 to use these")
    model = _build_network(cfg, arch, num_classes, cfg.MODEL.DROP_RATE, cfg.MODEL.DROP_PATH_RATE)
    if weights and record and record.classes and not require_head and list(record.classes) != classes:
        # Load all of the weights, then copy those that the classifier has
        trained = _build_network(cfg, arch, len(record.classes))
        _load_weights(trained, arch, weights, adapt_input=True)
        transfer_by_class(trained, model, record.classes, classes)
        return _to_device(model, cfg, device)
    # torchvision does not document the inputs that its networks accept
    if isinstance(arch, TorchvisionArch):
        check_torchvision_model(model, arch, preprocessing_from_config(cfg, arch).resolution)
    if weights:
        if _load_weights(model, arch, weights, not require_head):
            _log_assumed_classes(weights, record, classes)
        elif require_head:
            raise UsageError(f"{weights}: does not have the {num_classes} classes of {cfg.DATA.NAME}")
    return _to_device(model, cfg, device)


def _log_assumed_classes(weights: str, record: NetworkRecord | None, classes: Sequence[str]) -> None:
    """Log which classes the outputs are taken to be if the weights do not record it; the zoo's are known."""
    if not weights.startswith(ZOO_PREFIX) and not (record and record.classes):
        logger.info(
            "%s does not record its classes: its outputs are taken to be %s, in this order",
            weights,
            first_few(classes, 10),
        )


def _build_network(
    cfg: CfgNode, arch: AnyArch, num_classes: int, drop_rate: float = 0, drop_path_rate: float = 0
) -> nn.Module:
    options = {"num_classes": num_classes, "drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    build: Callable[..., nn.Module] = (
        build_network if isinstance(arch, ArchDef) else build_torchvision_model
    )
    return build(arch, in_chans=cfg.MODEL.IN_CHANS, **options)


def _load_weights(model: nn.Module, arch: AnyArch, weights: str, adapt_input: bool = False) -> bool:
    """Load weights, for other input channels with `adapt_input`, and return whether they included the head."""
    if isinstance(arch, ArchDef):
        return load_weights(model, weights, adapt_input=adapt_input).head_loaded
    return load_torchvision_weights(model, weights)


def _to_device(model: nn.Module, cfg: CfgNode, device: torch.device) -> nn.Module:
    return model.to(device, memory_format=memory_format(cfg.MODEL.CHANNELS_LAST))  # type: ignore[call-overload]


def build_objective(
    cfg: CfgNode,
    classes: Sequence[str],
    resolution: int,
    device: torch.device,
    class_weights: np.ndarray | None = None,
) -> Objective:
    """Build the objective: SOLVER.LOSS, alone or with distillation from the config's teacher."""
    weights = None
    if class_weights is not None:
        weights = torch.as_tensor(class_weights, dtype=torch.float32, device=device)
    loss = loss_from_config(cfg, weights)
    if cfg.DISTILL.CACHE or not cfg.DISTILL.ARCH:
        return partial(supervised_objective, loss=loss)
    teacher = build_teacher(cfg, classes, device)
    precision = autocast_dtype(cfg.SOLVER.PRECISION, device)
    if reduces_precision(device, precision):  # the trainer's autocast includes the teacher
        cast_weights(teacher, precision)
    return Distillation(teacher, resolution, teacher_resolution(cfg), cfg.DISTILL.ALPHA, loss)


def class_weights_from_config(cfg: CfgNode, dataset: ImageDataset) -> np.ndarray | None:
    """Return the weight of each class in the loss, with mean 1 over the training images; None if all are equal."""
    return class_weights(dataset, cfg.SOLVER.CLASS_WEIGHTING, cfg.SOLVER.CLASS_WEIGHTS)


@dataclass(frozen=True)
class Inputs:
    """Datasets, preprocessing and loaders of a run, and its config with the values that fit the dataset."""

    cfg: CfgNode
    train: ImageDataset
    val: ImageDataset
    preprocessing: Preprocessing
    train_loader: BatchLoader
    val_loader: BatchLoader
    train_side: int  # side of training images in pixels; a teacher may need them larger


def dataset_from_config(cfg: CfgNode, split: str) -> ImageDataset:
    """Open a split of the config's dataset."""
    DATASETS.check(cfg.DATA.NAME, "DATA.NAME", FieldError)
    return build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, split)


def build_inputs(
    cfg: CfgNode,
    arch: AnyArch,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
    classes: Sequence[str] = (),
) -> Inputs:
    """Build the datasets and loaders of a run. Training images have the teacher's resolution if that is higher.

    `classes` names the outputs of a network that exists, such as that of a run to resume; default: the classes of the
    training images. The datasets' classes are matched by name.
    """
    train, val = dataset_from_config(cfg, "train"), dataset_from_config(cfg, "val")
    val = relabel(val, classes or train.classes, "the validation split", "the training split")
    train = relabel(train, classes or train.classes, "the training split", "the checkpoint")
    _require_several_classes(cfg, train)
    cfg = fit_config(cfg, len(train), group.size)
    if is_multi_label(train):
        check_multi_label(cfg)
    preprocessing = preprocessing_from_config(cfg, arch)
    # The student resizes larger images itself, unless the teacher's logits are cached
    side = max(preprocessing.resolution, teacher_resolution(cfg))
    options: dict[str, Any] = {}
    if cfg.DISTILL.CACHE:
        side = preprocessing.resolution
        cache = teacher_logit_cache(cfg, train, side)
        options["views"] = cfg.DISTILL.VIEWS
        options["target"] = DistillationTarget(cache, cfg.DISTILL.ALPHA, cfg.SOLVER.LABEL_SMOOTHING)
    on_device = is_kept_on_device(cfg, device, preprocessing, side, len(train) + len(val))
    train_loader = loader_from_config(
        cfg,
        train,
        preprocessing,
        device,
        group,
        side=side,
        training=True,
        augment=not on_device,
        **options,
    )
    val_preprocessing = evaluation_preprocessing(preprocessing, cfg.EVAL.TTA)
    val_loader = loader_from_config(cfg, val, val_preprocessing, device, group)
    if on_device:
        padding = crop_padding(cfg, preprocessing, side)
        augmentation = BatchAugmentation(padding, cfg.INPUT.FLIP, cfg.SEED)
        train_loader = DeviceLoader(train_loader, resized(preprocessing, side), device, augmentation)
        val_loader = DeviceLoader(val_loader, val_preprocessing, device)
    return Inputs(cfg, train, val, preprocessing, train_loader, val_loader, side)


def _require_several_classes(cfg: CfgNode, train: ImageDataset) -> None:
    """Raise a DataError if all images have the same class, which any network gets right."""
    if len(train.classes) < 2 and not is_multi_label(train):
        source = cfg.DATA.ROOT or cfg.DATA.NAME
        raise DataError(
            f"{source}: has only one class, {first_few(train.classes)}; training needs at least 2, such as two class "
            "folders in train/"
        )


def is_multi_label(dataset: ImageDataset) -> bool:
    """Return whether the images of a dataset may have several labels."""
    return getattr(dataset, "multi_label", False)


def check_multi_label(cfg: CfgNode) -> None:
    """Raise a UsageError for what does not work with several labels per image."""
    if cfg.SOLVER.LOSS in ("cross_entropy", "focal"):
        problem = f"SOLVER.LOSS {cfg.SOLVER.LOSS} needs one class per image, but {cfg.DATA.NAME} has several labels"
        raise UsageError(f"{problem}: use binary_cross_entropy or sigmoid_focal")
    if cfg.DISTILL.ARCH:
        raise UsageError("DISTILL.ARCH: distillation needs one class per image: remove the teacher")
    if cfg.DATA.SAMPLING == "balanced":
        raise UsageError("DATA.SAMPLING balanced needs one class per image: use class weights")


def teacher_logit_cache(cfg: CfgNode, dataset: ImageDataset, resolution: int) -> TeacherLogitCache:
    """Return the cache of the teacher's logits for a dataset, with the fingerprint that it must match."""
    # Augmentations must not differ between the resolutions of teacher and student
    if teacher_resolution(cfg) != resolution and (cfg.INPUT.CROP == "padded" or cfg.INPUT.RANDOM_ERASING):
        key = "INPUT.CROP padded" if cfg.INPUT.CROP == "padded" else "INPUT.RANDOM_ERASING"
        raise UsageError(
            f"{key}: differs between the teacher's {teacher_resolution(cfg)} pixels and the student's {resolution}, so "
            f"DISTILL.CACHE cannot hold the teacher's logits; set DISTILL.RESOLUTION {resolution}"
        )
    # Everything that determines the views, the teacher's weights, and the images themselves
    fingerprint = {key: value for key, value in flatten(cfg).items() if key.startswith("INPUT.")}
    fingerprint |= {
        "SEED": cfg.SEED,
        "DATA.NAME": cfg.DATA.NAME,
        "DISTILL.ARCH": teacher_fingerprint(cfg),
        "teacher resolution": teacher_resolution(cfg),
        "SHA-256 of DISTILL.WEIGHTS": file_sha256(local_path(cfg.DISTILL.WEIGHTS)),
        "SHA-256 of the image names": image_names_digest(dataset),
    }
    shape = (cfg.DISTILL.VIEWS, len(dataset), len(dataset.classes))
    return TeacherLogitCache(expand_path(cfg.DISTILL.CACHE), fingerprint, shape)


def loader_from_config(
    cfg: CfgNode,
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
    *,
    side: int = 0,
    training: bool = False,
    augment: bool = True,
    **options: Any,
) -> BatchLoader:
    """Build a loader of uint8 images of `side` pixels, augmented if `augment`; as in evaluation if `side` is 0."""
    if training and cfg.DATA.SAMPLING == "balanced":
        options["order"] = balanced_order(class_indices(dataset, "DATA.SAMPLING balanced"))
    return build_loader(
        dataset,
        _train_transform(cfg, preprocessing, side, augment)
        if side
        else preprocessing.transform(normalize=False),
        batch_size=cfg.SOLVER.BATCH_SIZE if training else cfg.EVAL.BATCH_SIZE,
        training=training,
        workers=resolve_workers(cfg.DATA.WORKERS, on_gpu=device.type == "cuda"),
        seed=cfg.SEED,
        preprocessing=preprocessing,
        pin_memory=device.type == "cuda",
        rank=group.rank,
        world_size=group.size,
        **options,
    )


def _train_transform(cfg: CfgNode, preprocessing: Preprocessing, side: int, augment: bool) -> Transform:
    """Return the transform for training; without `augment`, what precedes the augmentation on a device."""
    return train_transform(
        resized(preprocessing, side),
        crop=cfg.INPUT.CROP,
        crop_scale=cfg.INPUT.CROP_SCALE,
        crop_padding=crop_padding(cfg, preprocessing, side) if augment else 0,
        flip=cfg.INPUT.FLIP and augment,
        color_jitter=cfg.INPUT.COLOR_JITTER,
        auto_augment=cfg.INPUT.AUTO_AUGMENT,
        random_erasing=cfg.INPUT.RANDOM_ERASING,
        normalize=False,
    )
